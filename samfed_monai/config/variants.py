"""Variants: JSON files with a few ids each that are merged over ``train.json``.

Variants of this package are in ``samfed_monai/methods``, beside their code, if they have any. Other packages add
variants by the entry point ``samfed_monai.methods``. A bundle's own are in its ``configs/variants`` and have priority
over both. The block ``_method`` of a file describes the variant for ``samfed variants``, tables and documentation.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from samfed_monai.config.targets import entry_points_of, file_of_method, owner_of
from samfed_monai.core.errors import Problems, Refused, did_you_mean, refused
from samfed_monai.core.io import read_json
from samfed_monai.core.registry import Deferred
from samfed_monai.core.validators import schema_problems

METHOD = "_method"
"""Id of the block that describes a variant."""

PACKAGED = Path(__file__).resolve().parent.parent / "methods"
"""Folder of the packaged variants, which fit every bundle with the same ids."""

KINDS = ("method", "ablation", "baseline", "personalised", "heterogeneous", "labelled", "reference")
"""Kinds of variants, in this order: SAM-Fed; SAM-Fed without a part; a compared method; one whose sites keep part of
the network; one with networks of the sites' own; one that learns from labels of the sites; a lower or upper bound."""

EXCHANGES = {
    "weights": "Sites send the weights of their networks, the server those of the global network.",
    "predictions": "Soft masks of the public images are sent; no weights leave a site.",
    "prototypes": "Class prototypes are sent; neither weights nor masks leave a site.",
    "none": "No weights, masks or prototypes are sent: every site trains alone.",
}
"""What a round can exchange, with a description."""

LABELS = {
    "none": "no labels of a site's own images: the public masks are enough",
    "masks": "masks of a site's own images",
    "weak": "weak labels of a site's own images (scribbles, points, boxes or blocks), or masks",
}
"""Labels that a method can need at a site, in addition to those of the public set."""

LEAVES_SITE = {
    "weights": "weights of its network",
    "predictions": "soft masks of the public images",
    "prototypes": "one mean feature per class",
    "spectrum": "amplitude-spectrum windows of its images, each the mean of several",
    "features": "mean features of its images",
    "graph": "a graph descriptor of its images",
    "scores": "counts, means of loss terms and of scores",
}
"""Data that a method can send from a site; the number of images, seconds and steps are always sent."""

CLASSES = {"one": "one class, a binary mask", "several": "one class or several"}
"""Numbers of classes that a method can learn."""

LAST = 10_000
"""Place in tables of a variant without a place of its own."""


@dataclass(frozen=True)
class Method:
    """Description of a variant, from its block ``_method``.

    Args:
        name: name of the variant.
        title: name in tables.
        note: description in one line.
        source: paper or code that it follows.
        published: parts that follow the source, and where it describes them.
        inferred: parts that are not in the source, or differ from it: our reading or our choice.
        left_out: parts of the source that are not implemented.
        base: variant that it builds on.
        kind: one of :data:`KINDS`.
        place: position in tables.
        use: settings to use if the defaults are not those that it was designed for.
        exchange: what a round exchanges, one of :data:`EXCHANGES`; ``None``: as its base.
        labels: labels that a site needs, one of :data:`LABELS`; ``None``: as its base.
        leaves_site: data that may leave a site, of :data:`LEAVES_SITE`; the release filter refuses the rest. ``None``:
            as its base.
        classes: one of :data:`CLASSES`; ``several`` if it learns more than one class. Not inherited.
        unused: ids that a federation with this variant has no use for, although its components receive them.
        networks: client networks of its package, name to builder (``package.module.name``), which `network_name` can
            then use wherever the package is installed.
        where: place of ``leaves_site`` in its own file or that of its base, for messages.
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
    unused: tuple[str, ...] = ()
    networks: Mapping[str, str] = field(default_factory=dict)
    where: str = ""


_INHERITED = {"exchange": EXCHANGES, "labels": LABELS, "leaves_site": LEAVES_SITE}
_TEXT = {"type": "string"}
_BUILDER = {**_TEXT, "pattern": r"\w\.\w", "description": "the path of its builder, `package.module.name`"}
_SCHEMA = {
    "type": "object",
    "properties": {
        **dict.fromkeys(("title", "note", "source", "published", "inferred", "left_out", "base", "use"), _TEXT),
        **{key: {"enum": list(words)} for key, words in {"kind": KINDS, "classes": CLASSES, **_INHERITED}.items()},
        "leaves_site": {"type": "array", "items": {"enum": list(LEAVES_SITE)}},
        "networks": {"type": "object", "additionalProperties": _BUILDER},
        "unused": {"type": "array", "items": _TEXT},
        "place": {"type": "integer"},
    },
    "additionalProperties": False,
}
"""JSON Schema of the block ``_method``."""


def read_method(path: Path) -> Method:
    """Reads the description of a variant from its file, without its bases.

    Raises:
        Refused: the file cannot be read, or its block does not match the schema; all problems at once.
    """
    name, content = path.stem, read_json(path, byte_order_mark=False)
    if not isinstance(content, Mapping):
        return Method(name, title=name)
    where, problems = f"{path.name} -> {METHOD}", Problems()
    block = content.get(METHOD, {})
    problems.extend(schema_problems({METHOD: block}, {"properties": {METHOD: _SCHEMA}}, path.name))
    problems.unless("_base" not in content, f"{path.name} -> _base", content.get("_base"), f"`base` in {METHOD}")
    if METHOD in content and isinstance(block, Mapping) and "base" not in block:
        for key in _INHERITED.keys() - block.keys():
            found, hint = "nothing", "add it, or set a base that has it"
            problems.add(f"{where}#{key}", found=found, expected=f"one of {list(_INHERITED[key])}", hint=hint)
    problems.refuse_if_any()
    fields: dict[str, Any] = {"title": name, **block}
    if "leaves_site" in fields:
        fields |= {"leaves_site": tuple(fields["leaves_site"]), "where": f"{where}#leaves_site"}
    return Method(name, **fields)


def resolved_method(bundle_root: str | Path | None, name: str) -> Method:
    """Reads the description of a variant; ``exchange``, ``labels`` and ``leaves_site`` are inherited from its bases.

    These are ``None`` for a variant without a block ``_method``.

    Raises:
        Refused: as :func:`variant_files` and :func:`read_method`, or ``leaves_site`` does not include the exchange.
    """
    base, *others = _bases(bundle_root, name).values()
    for method in others:
        inherited = {key: getattr(base, key) for key in _INHERITED if getattr(method, key) is None}
        base = replace(method, **inherited, where=method.where or base.where)
    exchange, leaves = base.exchange, base.leaves_site
    if exchange not in (None, "none") and leaves is not None and exchange not in leaves:
        found, expected = str(list(leaves)), f"a list with {exchange!r}, which the method exchanges"
        raise refused(base.where, found, expected, f"add it, or change exchange of {name}")
    return base


@functools.cache
def packaged_methods() -> Mapping[str, Path]:
    """Files of the variants of this package and of other packages' entry points, by name.

    Broken entry points are left out, see :func:`samfed_monai.config.targets.entry_points_of`.
    """
    others = {name: file_of_method(point) for name, point in entry_points_of("methods").points.items()}
    return MappingProxyType(others | {path.stem: path for path in PACKAGED.glob("*.json")})


@functools.cache
def installed_networks() -> dict[str, Deferred]:
    """Client networks of installed packages: from their own entry points, and from their methods."""
    points = entry_points_of("methods").points
    method_networks = {
        network: Deferred(place, owner_of(points[name]) if name in points else "samfed_monai")
        for name, path in packaged_methods().items()
        for network, place in read_method(path).networks.items()
    }
    return {**entry_points_of("networks").found, **method_networks}


@functools.cache
def methods() -> Mapping[str, Method]:
    """Descriptions of all installed variants, in the order of tables."""
    read = (resolved_method(None, name) for name in packaged_methods())
    return MappingProxyType({each.name: each for each in sorted(read, key=lambda each: (each.place, each.name))})


def own_variants(bundle_root: str | Path | None) -> dict[str, Path]:
    """Files in a bundle's ``configs/variants``, by name; none without a bundle."""
    folder = Path(bundle_root) / "configs" / "variants" if bundle_root is not None else None
    return {path.stem: path for path in sorted(folder.glob("*.json"))} if folder else {}


def known_variants(bundle_root: str | Path | None = None) -> list[str]:
    """Names of the installed variants and of the bundle's own, if a bundle is given."""
    return sorted({*own_variants(bundle_root), *packaged_methods()})


FEDAVG = "fedavg"
"""Name of the strategy :mod:`samfed_monai.methods.fedavg`, which users may look for among the variants."""

_FEDAVG = (
    "every variant without a strategy averages by FedAvg: no_sam with the sites' own confident labels, "
    "oracle with their true labels, samfed with SAM's guidance (code: samfed_monai/methods/fedavg.py)"
)


def find_variant(bundle_root: str | Path | None, name: Any, where: str = "variant") -> Path:
    """File of a variant; the bundle's own variants have priority over installed ones.

    Args:
        bundle_root: the bundle; ``None`` finds installed variants only.
        name: of the variant.
        where: place of the name, for messages.

    Raises:
        Refused: no such variant (the message lists the existing ones), or a broken one of another package (the message
            names the package).
    """
    files, broken = {**packaged_methods(), **own_variants(bundle_root)}, entry_points_of("methods").broken
    if isinstance(name, str):  # a file may contain any value
        if name in files:
            return files[name]
        if name in broken:
            raise Refused([broken[name]])
    hint = _FEDAVG if name == FEDAVG else did_you_mean(str(name), files)
    hint = hint or "your own variants belong in the bundle's configs/variants, or in an installed package"
    raise refused(where, found=repr(name), expected=f"one of {sorted(files)}", hint=hint)


def variant_files(bundle_root: str | Path | None, name: Any) -> list[Path]:
    """Files of a variant in merge order: its bases, if any, then the variant.

    Raises:
        Refused: no such variant, an unreadable file, or circular bases.
    """
    return list(_bases(bundle_root, name))


def _bases(bundle_root: str | Path | None, name: Any) -> dict[Path, Method]:
    """Files of a variant in merge order, with the description in each."""
    bases: dict[Path, Method] = {}
    where = "variant"
    while name is not None:
        path = find_variant(bundle_root, name, where)
        if path in bases:
            found, expected = f"{name!r}, which builds on this variant", "a base that does not build on it"
            raise refused(where, found, expected, "remove one")
        bases[path] = read_method(path)
        name, where = bases[path].base, f"{path.name} -> {METHOD}#base"
    return dict(reversed(bases.items()))
