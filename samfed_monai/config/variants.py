"""Variants: a few ids each on top of ``train.json``. Methods declare theirs beside their code; bundles may add to them.

A variant is a JSON file. Those of the package are in ``samfed_monai/methods``, beside the code that they need, if they
need any; another package adds one through the entry point ``samfed_monai.methods``; a bundle's own are in its
``configs/variants`` and go before both. What a file says of itself is in its block ``_method``, the one place that
``samfed variants``, tables and documentation read.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from samfed_monai.config.targets import brought, file_of_method, owner_of
from samfed_monai.core.errors import Problems, Refused, did_you_mean, refused
from samfed_monai.core.io import read_json
from samfed_monai.core.registry import Elsewhere
from samfed_monai.core.validators import departures

METHOD = "_method"
"""Id of the block in which a variant says what it is."""

PACKAGED = Path(__file__).resolve().parent.parent / "methods"
"""Folder of the variants that come with the package and fit every bundle of the same ids."""

KINDS = ("method", "ablation", "baseline", "personalised", "heterogeneous", "labelled", "reference")
"""What a variant can be: SAM-Fed; SAM-Fed without a part; a rival; one whose sites keep part of a network, or a network
of their own; one whose sites learn from labels of their own; a floor or ceiling of tables."""

EXCHANGES = {
    "weights": "Sites send the weights of their networks, the server those of the global network.",
    "predictions": "Soft masks of the public images are sent; no weights leave a site.",
    "prototypes": "Class prototypes are sent; neither weights nor masks leave a site.",
    "none": "Nothing is sent: every site trains alone.",
}
"""What a round can exchange."""

LABELS = {
    "none": "none of a site's own images: those of the public set suffice",
    "masks": "masks of a site's own images",
    "weak": "weak labels of a site's own images (scribbles, points, boxes or blocks), or masks",
}
"""What labels a method can need of a site, beside the public set's."""

LEAVES_SITE = {
    "weights": "weights of its network",
    "predictions": "soft masks of the public images",
    "prototypes": "one mean feature per class",
    "spectrum": "amplitude-spectrum windows of its images, each the mean of several",
    "features": "mean features of its images",
    "graph": "a graph descriptor of its images",
    "scores": "counts, means of loss terms and of scores",
}
"""What a method can let leave a site; number of images, seconds and steps do in any case."""

CLASSES = {"one": "one class, a binary mask", "several": "several classes as well"}
"""How many classes a method can learn."""

LAST = 10_000
"""Place in tables of a variant that says none."""


@dataclass(frozen=True)
class Method:
    """What a variant says of itself.

    Args:
        name: the variant's.
        title: its name in tables.
        note: what it is, in one line.
        source: paper or code that it follows.
        published: what of it is as its source has it, and where that is said.
        inferred: what of it is not in the source, or different from it: our reading or our choice.
        left_out: what of its source it does not do.
        base: variant that it builds on.
        kind: one of :data:`KINDS`.
        place: tables show variants in this order.
        use: what to give it, where its defaults are not what it was made for.
        exchange: what a round exchanges, one of :data:`EXCHANGES`; ``None``: as its base.
        labels: what labels of its own a site needs, one of :data:`LABELS`; ``None``: as its base.
        leaves_site: what may leave a site, of :data:`LEAVES_SITE`; the release filter refuses the rest. ``None``: as
            its base.
        classes: ``several`` where it learns more than one class, one of :data:`CLASSES`; it says so itself, whatever
            its base says.
        networks: client networks that its code brings, name to builder (``package.module.name``): `network_name` can
            then name them wherever the package is installed.
        where: place of ``leaves_site``, for messages: its own file's, or that of the base which declares it.
    """

    name: str
    title: str = ""
    note: str = ""
    source: str = ""
    published: str = ""
    inferred: str = ""
    left_out: str = ""
    base: str | None = None
    kind: str = "baseline"
    place: int = LAST
    use: str = ""
    exchange: str | None = None
    labels: str | None = None
    leaves_site: tuple[str, ...] | None = None
    classes: str = "one"
    networks: Mapping[str, str] = field(default_factory=dict)
    where: str = ""


_INHERITED = {"exchange": EXCHANGES, "labels": LABELS, "leaves_site": LEAVES_SITE}
_TEXT = {"type": "string"}
_BUILDER = {**_TEXT, "pattern": r"\w\.\w", "description": "where its builder is, `package.module.name`"}
_SCHEMA = {
    "type": "object",
    "properties": {
        **dict.fromkeys(("title", "note", "source", "published", "inferred", "left_out", "base", "use"), _TEXT),
        **{key: {"enum": list(words)} for key, words in {"kind": KINDS, "classes": CLASSES, **_INHERITED}.items()},
        "leaves_site": {"type": "array", "items": {"enum": list(LEAVES_SITE)}},
        "networks": {"type": "object", "additionalProperties": _BUILDER},
        "place": {"type": "integer"},
    },
    "additionalProperties": False,
}
"""What a block ``_method`` holds."""


def read_method(path: Path) -> Method:
    """What the file of a variant itself says of it.

    Raises:
        Refused: the file cannot be read, or its block holds something else; every problem at once.
    """
    name, content = path.stem, read_json(path, byte_order_mark=False)
    if not isinstance(content, Mapping):
        return Method(name, title=name)
    where, problems = f"{path.name} -> {METHOD}", Problems()
    block = content.get(METHOD, {})
    problems.extend(departures({METHOD: block}, {"properties": {METHOD: _SCHEMA}}, path.name))
    problems.unless("_base" not in content, f"{path.name} -> _base", content.get("_base"), f"`base` in {METHOD}")
    if METHOD in content and isinstance(block, Mapping) and "base" not in block:
        for key in _INHERITED.keys() - block.keys():
            found, hint = "nothing", "say it, or name a base that does"
            problems.add(f"{where}#{key}", found=found, expected=f"one of {list(_INHERITED[key])}", hint=hint)
    problems.refuse_if_any()
    said: dict[str, Any] = {"title": name, **block}
    if "leaves_site" in said:
        said |= {"leaves_site": tuple(said["leaves_site"]), "where": f"{where}#leaves_site"}
    return Method(name, **said)


def declared(bundle_root: str | Path | None, name: str) -> Method:
    """What a variant says of itself, and its bases of it: exchange, labels and what leaves a site are inherited.

    They stay ``None`` in a variant without a block ``_method``.

    Raises:
        Refused: as :func:`variant_files` and :func:`read_method`, or an exchange of what is not said to leave a site.
    """
    base, *others = _bases(bundle_root, name).values()
    for method in others:
        inherited = {key: getattr(base, key) for key in _INHERITED if getattr(method, key) is None}
        base = replace(method, **inherited, where=method.where or base.where)
    exchange, leaves = base.exchange, base.leaves_site
    if exchange not in (None, "none") and leaves is not None and exchange not in leaves:
        found, expected = str(list(leaves)), f"{exchange!r} among them, which the method exchanges"
        raise refused(base.where, found, expected, f"add it, or let exchange of {name} be another")
    return base


@functools.cache
def packaged_methods() -> Mapping[str, Path]:
    """Files of the variants that installed packages bring, by name: this package's, and those of entry points.

    Those that are broken are left out, see :func:`samfed_monai.config.targets.brought`.
    """
    others = {name: file_of_method(point) for name, point in brought("methods").points.items()}
    return MappingProxyType(others | {path.stem: path for path in PACKAGED.glob("*.json")})


@functools.cache
def networks_elsewhere() -> dict[str, Elsewhere]:
    """Client networks that installed packages bring: by entry points of their own, and by their methods."""
    points = brought("methods").points
    of_methods = {
        network: Elsewhere(place, owner_of(points[name]) if name in points else "samfed_monai")
        for name, path in packaged_methods().items()
        for network, place in read_method(path).networks.items()
    }
    return {**brought("networks").found, **of_methods}


def methods() -> dict[str, Method]:
    """What every installed variant says of itself, in the order of tables."""
    read = [declared(None, name) for name in packaged_methods()]
    return {method.name: method for method in sorted(read, key=lambda method: (method.place, method.name))}


def own_variants(bundle_root: str | Path | None) -> dict[str, Path]:
    """Files in a bundle's ``configs/variants`` by the names of the variants; none without a bundle."""
    folder = Path(bundle_root) / "configs" / "variants" if bundle_root is not None else None
    return {path.stem: path for path in sorted(folder.glob("*.json"))} if folder else {}


def known_variants(bundle_root: str | Path | None = None) -> list[str]:
    """Names of installed variants and of the bundle's own; without a bundle, of the former."""
    return sorted({*own_variants(bundle_root), *packaged_methods()})


FEDAVG = "fedavg"
"""What :mod:`samfed_monai.methods.fedavg` is called by who looks for a variant of that name."""

_FEDAVG = (
    "it is how every variant averages that names no strategy: no_sam is it on the sites' own confident labels, "
    "oracle with their true ones, samfed with SAM's guidance (code: samfed_monai/methods/fedavg.py)"
)


def find_variant(bundle_root: str | Path | None, name: Any) -> Path:
    """File of a variant; the bundle's own of that name goes before an installed one.

    Raises:
        Refused: no such variant, and the message lists those that exist; or one of another package that is broken, and
            the message says whose.
    """
    files, broken = {**packaged_methods(), **own_variants(bundle_root)}, brought("methods").broken
    if isinstance(name, str):  # a file may say anything
        if name in files:
            return files[name]
        if name in broken:
            raise Refused([broken[name]])
    hint = _FEDAVG if name == FEDAVG else did_you_mean(str(name), files)
    hint = hint or "one of your own is in the bundle's configs/variants, or in a package that is installed"
    raise refused("variant", found=repr(name), expected=f"one of {sorted(files)}", hint=hint)


def variant_files(bundle_root: str | Path | None, name: Any) -> list[Path]:
    """Files of a variant in merge order: what it builds on, if anything, and the variant on top.

    Raises:
        Refused: no such variant, a file that cannot be read, or bases that go round in a circle.
    """
    return list(_bases(bundle_root, name))


def _bases(bundle_root: str | Path | None, name: Any) -> dict[Path, Method]:
    """Files of a variant in merge order, with what each says of itself."""
    found: dict[Path, Method] = {}
    while name is not None:
        path = find_variant(bundle_root, name)
        if path in found:
            wrong, expected = f"the base {name!r}, which builds on this variant", "a variant that does not"
            raise refused(f"{next(reversed(found)).name} -> {METHOD}#base", wrong, expected, "remove one")
        found[path] = read_method(path)
        name = found[path].base
    return dict(reversed(found.items()))
