"""Variants: a few ids each on top of ``train.json``; the package's own, and those that a bundle adds or replaces."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from samfed_monai.config.ids import did_you_mean
from samfed_monai.errors import Problem, Refused
from samfed_monai.io import read_json

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


def note_of(path: Path) -> str:
    """What a variant's ``_note`` says of it.

    Raises:
        Refused: the file cannot be read.
    """
    content = read_json(path)
    return str(content.get("_note", "")) if isinstance(content, dict) else ""
