"""Variants: a few ids each on top of ``train.json``; the package's own, and those that a bundle adds or replaces."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from samfed_monai.core.errors import Problem, Refused, did_you_mean
from samfed_monai.core.io import read_json

BASE = "_base"
"""Id of a variant that names the variant it builds on."""

PACKAGED = Path(__file__).resolve().parent.parent / "variants"
"""Folder of the variants that come with the package and fit every bundle of the same ids."""


def own_variants(bundle_root: str | Path) -> list[str]:
    """Names of the files in a bundle's ``configs/variants``."""
    return sorted(path.stem for path in (Path(bundle_root) / "configs" / "variants").glob("*.json"))


def known_variants(bundle_root: str | Path | None = None) -> list[str]:
    """Names of the package's variants and of the bundle's own; without a bundle, of the package's."""
    own = own_variants(bundle_root) if bundle_root is not None else []
    return sorted({*own, *(path.stem for path in PACKAGED.glob("*.json"))})


def find_variant(bundle_root: str | Path | None, name: Any) -> Path:
    """File of a variant; the bundle's own of that name goes before the package's.

    Raises:
        Refused: no such variant; the message lists those that exist.
    """
    known = known_variants(bundle_root)
    if name not in known:
        mend = did_you_mean(str(name), known)
        raise Refused([Problem("variant", found=repr(name), expected=f"one of {known}", mend=mend)])
    own = Path(bundle_root) / "configs" / "variants" / f"{name}.json" if bundle_root is not None else None
    return own if own is not None and own.is_file() else PACKAGED / f"{name}.json"


def variant_files(bundle_root: str | Path | None, name: Any) -> list[Path]:
    """Files of a variant in merge order: what its ``_base`` names, if it has one, and the variant on top.

    Raises:
        Refused: no such variant, a file that cannot be read, or bases that go round in a circle.
    """
    files: list[Path] = []
    while name is not None:
        path = find_variant(bundle_root, name)
        if path in files:
            found, expected = f"the base {name!r}, which builds on this variant", "a variant that does not"
            raise Refused([Problem(f"{files[0].name} -> {BASE}", found=found, expected=expected, mend="remove one")])
        files.insert(0, path)
        content = read_json(path, byte_order_mark=False)
        name = content.get(BASE) if isinstance(content, dict) else None
    return files


def note_of(path: Path) -> str:
    """What a variant's ``_note`` says of it.

    Raises:
        Refused: the file cannot be read.
    """
    content = read_json(path)
    return str(content.get("_note", "")) if isinstance(content, dict) else ""
