"""Finds bundles: in a given folder, in the installed package, or in a checkout of the repository."""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from samfed_monai.core.errors import did_you_mean, refused

_PACKAGE = Path(__file__).resolve().parent.parent


def is_bundle(folder: Path) -> bool:
    """Whether a folder is a bundle."""
    return (folder / "configs" / "metadata.json").is_file()


@functools.cache
def packaged_bundles() -> Mapping[str, Path]:
    """Names and folders of the packaged bundles; those of a wheel have priority over those of a checkout."""
    bundles: dict[str, Path] = {}
    for root in (_PACKAGE / "bundles", _PACKAGE.parent / "bundles"):
        for folder in sorted(root.iterdir()) if root.is_dir() else []:
            if is_bundle(folder):
                bundles.setdefault(folder.name, folder)
    return MappingProxyType(bundles)


def packaged_bundle(name: str, others: str = "") -> Path:
    """Folder of a packaged bundle, for instance ``samfed_skin``; ``others`` says what else was accepted.

    Raises:
        Refused: no bundle of that name; the message lists the existing ones.
    """
    bundles = packaged_bundles()
    if name not in bundles:
        raise refused("bundle", repr(name), f"{others}one of {sorted(bundles)}", did_you_mean(name, bundles))
    return bundles[name]


def find_bundle(path_or_name: str | Path) -> Path:
    """Absolute folder of a bundle, given its path or the name of a packaged one; an existing path has priority.

    Raises:
        Refused: neither a bundle folder nor the name of a packaged bundle.
    """
    folder = Path(path_or_name).expanduser()
    if is_bundle(folder):
        return folder.resolve()
    if folder.exists() or len(folder.parts) > 1:
        found = "a folder without configs/metadata.json" if folder.is_dir() else "no such folder"
        hint = "name the folder that contains configs/, or copy a packaged bundle: samfed init samfed_skin DIR"
        raise refused(str(folder), found=found, expected="a bundle folder", hint=hint)
    return packaged_bundle(str(path_or_name), "a bundle's folder, or ")


def bundle_or_path(given: str | Path | None) -> str | None:
    """Returns the name of a packaged bundle unchanged, and any other path as an absolute path."""
    if given is None or (str(given) in packaged_bundles() and not Path(given).exists()):
        return None if given is None else str(given)
    return str(Path(given).expanduser().resolve())


def bundle_of_command(command: str | None) -> str | None:
    """Returns the bundle in a run's command, as written there, or ``None``; the bundle need not exist.

    Args:
        command: command of ``results.json``, for instance ``samfed federate samfed_skin --rounds 3``, or MONAI's with
            a file of the bundle's ``configs/``.
    """
    samfed_match = re.search(r"\b(?:federate|compare|flare +\w+) +('[^']*'|[^\s'-]\S*)", command or "")
    if samfed_match:
        return shlex.split(samfed_match[1])[0]
    monai_match = re.search(r"([^\s'\"\[,]+)/configs/\w+\.json", command or "")
    return monai_match[1] if monai_match else None
