"""Variants: JSON files with a few ids each that are merged over ``train.json``.

Variants of this package are in ``samfed_monai/methods``, beside their code, if they have any. Other packages add
variants by the entry point ``samfed_monai.methods``. A bundle's own are in its ``configs/variants`` and have priority
over both. The block ``_method`` of a file describes the variant (:mod:`samfed_monai.config.method`).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from samfed_monai.config.method import INHERITED, METHOD, Method, read_method
from samfed_monai.config.targets import entry_points_of, file_of_method, owner_of
from samfed_monai.core.errors import Refused, did_you_mean, refused
from samfed_monai.core.registry import Deferred

PACKAGED = Path(__file__).resolve().parent.parent / "methods"
"""Folder of the packaged variants, which fit every bundle with the same ids."""


def resolved_method(bundle_root: str | Path | None, name: str) -> Method:
    """Reads the description of a variant; ``exchange``, ``labels`` and ``leaves_site`` are inherited from its bases.

    These are ``None`` for a variant without a block ``_method``.

    Raises:
        Refused: as :func:`variant_files` and :func:`read_method`, or ``leaves_site`` does not include the exchange.
    """
    base, *others = _bases(bundle_root, name).values()
    for method in others:
        inherited = {key: getattr(base, key) for key in INHERITED if getattr(method, key) is None}
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
