"""Check of a plan's network before it processes an image: layers that could copy images into an update."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from samfed_monai.config.parse import parsed
from samfed_monai.config.targets import is_from_catalogue
from samfed_monai.protocol.message import message_refused

MOST_POSITIONS = 256
"""Maximum number of positions of a map with separate weights in one unit: a kernel of 16 x 16, a ViT's patch."""
MOST_INPUTS = 3 * MOST_POSITIONS
"""Maximum number of inputs of a linear layer's unit if each is from another position."""

#: Layers that read the last dimension of their input as a row.
_ROW_LAYERS = (nn.Linear, nn.MultiheadAttention, nn.RNNBase)
_MOST_CHANGED = 0.1  # if each value of a row is from another position, one pixel affects less than this share of them


def copying_layers(network: nn.Module, shape: Sequence[int]) -> list[str]:
    """Returns the layers with a separate weight for (nearly) each position of the image, or of a feature map.

    The update of such a layer is a sum of its inputs, from which a server that chooses the weights can recover single
    images ("Robbing the Fed", Fowl et al., ICLR 2022, arXiv 2110.13057; on medical images MedLeak, arXiv 2407.09972).
    Detected are convolutions with a kernel of more than 16 x 16, and linear layers of more than :data:`MOST_INPUTS`
    inputs that are a flattened map, or of which one pixel changes only a few. The check uses random weights, so that it
    does not depend on those sent.

    It does not detect reading without a module of these kinds, thumbnails of up to 16 x 16 pixels, or several small
    layers that do this together.

    Args:
        network: any network; it is not changed.
        shape: (C, H, W) of an image.
    """
    probe = copy.deepcopy(network).cpu().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in probe.parameters():
            spread = math.sqrt(math.prod(parameter.shape[1:]))  # 1 for a bias: the empty product
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / spread)
    layers = [
        name
        for name, module in probe.named_modules()
        if isinstance(module, nn.modules.conv._ConvNd) and math.prod(module.kernel_size) > MOST_POSITIONS
    ]
    image = torch.rand(1, *shape, generator=generator)
    changed_image = image.clone()
    changed_image[..., shape[-2] // 2, shape[-1] // 2] = 100.0
    first, second = _wide_inputs(probe, image), _wide_inputs(probe, changed_image)
    for name, (rows, flattened) in first.items():
        if flattened or (name in second and _changes_few(rows, second[name][0])):
            layers.append(name)
    return layers


def _wide_inputs(probe: nn.Module, image: Tensor) -> dict[str, tuple[Tensor, bool]]:
    """Returns the wide inputs of each layer as rows, and whether a row is a whole map in any order."""
    maps, rows = {_summary(image)}, {}

    def record(name: str, module: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
        tensors = [each for each in (*inputs, *keywords.values()) if isinstance(each, torch.Tensor) and each.ndim > 1]
        if isinstance(module, _ROW_LAYERS) and tensors and tensors[0].shape[-1] > MOST_INPUTS:
            wide = tensors[0].detach().reshape(-1, tensors[0].shape[-1])
            rows[name] = (wide, _summary(wide[0]) in maps)
        for each in output if isinstance(output, (tuple, list)) else [output]:
            if isinstance(each, torch.Tensor) and sum(side > 1 for side in each.shape[1:]) > 1:
                maps.add(_summary(each))

    with ExitStack() as hooks, torch.no_grad():
        for name, each in probe.named_modules():
            hooks.enter_context(each.register_forward_hook(partial(record, name), with_kwargs=True))
        probe(image)
    return rows


def _summary(values: Tensor) -> tuple[int, str, str]:
    """Returns the number of values of one image's map, and sums that do not depend on their order."""
    flat = values.detach().double().flatten()
    return flat.numel(), f"{float(flat.sum()):.6g}", f"{float(flat.pow(2).sum()):.6g}"


def _changes_few(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    changed = (one != other).float().mean(dim=1)
    return bool((changed > 0).any()) and float(changed.max()) < _MOST_CHANGED


def require_plain_network(client: Any) -> None:
    """Refuses to train a network that a plan names by its class if one of its layers could copy images.

    Networks of the catalogue are code of this package, or of one that the site installed, and are not checked if they
    are the network that is trained: a plan may name one under ``network_def`` and train another.

    Args:
        client: an initialized :class:`SamFedAlgo`; one that only evaluates sends no update.

    Raises:
        MessageRefused: such a layer, or a network that cannot be checked.
    """
    parser = getattr(client.train_workflow, "parser", None)
    if client.trainer is None or parser is None:
        return
    if is_from_catalogue(parser) and parsed(parser, "network_def") is client.trainer.network:
        return
    size = parsed(parser, "image_size", 64)
    expected = "no layer with one weight per pixel, whose update would reveal the image"
    try:
        layers = copying_layers(client.trainer.network, (3, size, size))
        found = f"{len(layers)} such" if layers else ""
    except Exception:  # unknown code may raise anything
        found, expected = "a network that cannot be checked", "a network that accepts an image of this size"
    if found:
        hint = "choose a network of the catalogue, or install one at the site with a package that registers it"
        raise message_refused("plan -> network_def", found, expected, hint)
