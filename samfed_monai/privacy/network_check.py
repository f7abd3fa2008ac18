"""Check of the network that a plan names, before it sees an image: layers that could copy images into an update."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from samfed_monai.config.parse import parsed
from samfed_monai.config.targets import in_catalogue
from samfed_monai.protocol.message import message_refused

if TYPE_CHECKING:
    from torch import Tensor

MOST_PLACES = 256
"""Places of a map that one unit may read with weights of their own: a kernel of 16 x 16, the patch of a ViT."""
MOST_VALUES = 3 * MOST_PLACES
"""Values that one unit of a linear layer may read where each comes from a place of its own."""

_BY_ROW = (nn.Linear, nn.MultiheadAttention, nn.RNNBase)  # what reads the last dimension of its input as one row
_SPARSE = 0.1  # of a row's values, at most so many hang on one pixel where each value has a place of its own


def reading_layers(network: nn.Module, shape: Sequence[int]) -> list[str]:
    """Layers with a weight of its own for (nearly) each place of the image, or of a map made of it.

    The update of such a layer is a sum of what it read, and a server that plants its weights can have single images out
    of it ("Robbing the Fed", Fowl et al., ICLR 2022, arXiv 2110.13057; on medical images MedLeak, arXiv 2407.09972).
    Found are convolutions with a kernel of more than 16 x 16, and linear layers of more than :data:`MOST_VALUES` inputs
    that are a flattened map, or of which one pixel moves only a few. Weights are drawn at random for the look, so that
    it does not matter which ones were sent.

    It does not find layers that read without a module of these kinds, a thumbnail of up to 16 x 16 pixels, or what
    several small layers do together.

    Args:
        network: any; not changed.
        shape: (C, H, W) of an image.
    """
    probe = copy.deepcopy(network).cpu().eval()
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in probe.parameters():
            spread = math.sqrt(math.prod(parameter.shape[1:]))  # of a bias 1, the product of nothing
            parameter.copy_(torch.randn(parameter.shape, generator=random) / spread)
    found = [
        name
        for name, module in probe.named_modules()
        if isinstance(module, nn.modules.conv._ConvNd) and math.prod(module.kernel_size) > MOST_PLACES
    ]
    image = torch.rand(1, *shape, generator=random)
    touched = image.clone()
    touched[..., shape[-2] // 2, shape[-1] // 2] = 100.0
    first, second = _rows(probe, image), _rows(probe, touched)
    for name, (rows, flattened) in first.items():
        if flattened or (name in second and _sparse(rows, second[name][0])):
            found.append(name)
    return found


def _rows(probe: nn.Module, image: Tensor) -> dict[str, tuple[Tensor, bool]]:
    """Wide inputs by layer, as rows, and whether one of them is a whole map in some order."""
    maps, rows = {_summary(image)}, {}

    def look(name: str, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        given = [each for each in (*inputs, *named.values()) if isinstance(each, torch.Tensor) and each.ndim > 1]
        if isinstance(module, _BY_ROW) and given and given[0].shape[-1] > MOST_VALUES:
            wide = given[0].detach().reshape(-1, given[0].shape[-1])
            rows[name] = (wide, _summary(wide[0]) in maps)
        for each in output if isinstance(output, (tuple, list)) else [output]:
            if isinstance(each, torch.Tensor) and sum(side > 1 for side in each.shape[1:]) > 1:
                maps.add(_summary(each))

    with ExitStack() as hooks, torch.no_grad():
        for name, each in probe.named_modules():
            hooks.enter_context(each.register_forward_hook(partial(look, name), with_kwargs=True))
        probe(image)
    return rows


def _summary(values: Tensor) -> tuple[int, str, str]:
    """Of a map of one image: its number of values and sums that do not depend on their order."""
    flat = values.detach().double().flatten()
    return flat.numel(), f"{float(flat.sum()):.6g}", f"{float(flat.pow(2).sum()):.6g}"


def _sparse(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    moved = (one != other).float().mean(dim=1)
    return bool((moved > 0).any()) and float(moved.max()) < _SPARSE


def require_plain_network(client: Any) -> None:
    """Refuses to train a network that a plan names by its class where a layer of it could copy images.

    Networks of the catalogue are code of this package, or of one that the site installed, and are not looked at, where
    it is one of them that is trained: a plan may name one under ``network_def`` and have another one trained.

    Args:
        client: an initialized :class:`SamFedAlgo`; one that only evaluates sends no update.

    Raises:
        MessageRefused: such a layer, or a network that cannot be looked at.
    """
    parser = getattr(client.train_workflow, "parser", None)
    if client.trainer is None or parser is None:
        return
    if in_catalogue(parser) and parsed(parser, "network_def") is client.trainer.network:
        return
    size = parsed(parser, "image_size", 64)
    expected = "no layer with a weight for each place of an image: its update would hold the image"
    try:
        layers = reading_layers(client.trainer.network, (3, size, size))
        found = f"{len(layers)} such" if layers else ""
    except Exception:  # of a stranger's network, whatever it raises
        found, expected = "a network that cannot be looked at", "one that takes an image of this size"
    if found:
        hint = "name a network of the catalogue, or install it at the site as a package that registers it"
        raise message_refused("plan -> network_def", found, expected, hint)
