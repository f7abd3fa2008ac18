"""Channels chosen by site: what a network knows of where an image comes from (FedICRA, arXiv 2304.05635)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from samfed_monai.core.errors import Problem, Problems, Refused

SELECTION = "selection"
"""Name of the module that chooses, in the encoder whose deepest features it weighs."""
CODES = f"{SELECTION}.codes"
"""How the name of its buffer ends in the network's state: who the site is, and who else there is."""
_REDUCTION = 16


class ChannelSelection(nn.Module):
    """FedICRA's personalised channel selection: ``x + x * sigmoid(s(mean x, e) + s(max x, e))``.

    ``e`` is what two 1 x 1 convolutions without bias make of the site's code, which is 1 at its place and 0 elsewhere;
    ``s`` two of the same kind, narrower by 16 between them, of the pooled features and ``e`` side by side, one for the
    mean and the maximum over the image. So far as in the public code (``PersonalizedChannelSelection``), whose modules
    are in a plain list and are therefore neither trained nor sent: here they are both, as the paper has it.

    Ours: the code is a buffer that the server fills in (:class:`samfed_monai.methods.fedicra.SiteCodes`), with a
    second line for the places that are taken; zeros are an unknown site.

    Args:
        channels: of the features.
        places: the most sites that there can be.
    """

    codes: Tensor

    def __init__(self, channels: int, places: int) -> None:
        super().__init__()
        inside = max(1, channels // _REDUCTION)
        self.embed = nn.Sequential(
            nn.Conv2d(places, channels, 1, bias=False), nn.ReLU(), nn.Conv2d(channels, channels, 1, bias=False)
        )
        self.weigh = nn.Sequential(
            nn.Conv2d(2 * channels, inside, 1, bias=False), nn.ReLU(), nn.Conv2d(inside, channels, 1, bias=False)
        )
        self.register_buffer("codes", torch.zeros(2, places))

    def heat(self, features: Tensor, code: Tensor) -> Tensor:
        """``(B, C, h, w)`` and a code ``(places,)`` to weights ``(B, C, 1, 1)`` in (0, 1)."""
        site = self.embed(code.view(1, -1, 1, 1)).expand(len(features), -1, -1, -1)
        mean, most = features.mean((2, 3), keepdim=True), features.amax((2, 3), keepdim=True)
        chosen: Tensor = torch.sigmoid(self.weigh(torch.cat([mean, site], 1)) + self.weigh(torch.cat([most, site], 1)))
        return chosen

    def forward(self, features: Tensor) -> Tensor:
        """``(B, C, h, w)`` to the same shape, channels weighed for this site."""
        return features + features * self.heat(features, self.codes[0])

    def others(self) -> list[Tensor]:
        """Codes of the other sites, ``(places,)`` each, in the order of their places."""
        own, taken = self.codes
        return [code for code in torch.eye(len(taken)).to(taken)[taken > 0] if not torch.equal(code, own)]


def select_channels(network: nn.Module, places: int) -> nn.Module:
    """Weighs the deepest features of a network's encoder by site; names of its other parts stay as they are.

    Args:
        network: with an ``encoder`` that returns its feature maps, deepest last, and knows how wide they are (the light
            pyramids, segmentation_models_pytorch's), or MONAI's BasicUNet.
        places: the most sites that there can be.

    Raises:
        Refused: another network, or no place for two sites.
    """
    problems, where = Problems(), "network_def#site_channels"
    problems.unless(type(places) is int and places >= 2, where, places, "the most sites that there can be, 2 or more")
    part = _encoder_of(network)
    channels = _deepest(part) if part is not None else None
    if part is None or channels is None:
        expected = "a network whose encoder shows its feature maps, as mobile_sam_fpn or deeplabv3plus_resnet18"
        problems.add(where, found=type(network).__name__, expected=expected, hint="choose another network_name")
        raise Refused(problems)
    problems.refuse_if_any()
    part.add_module(SELECTION, ChannelSelection(channels, places))
    if not isinstance(part, nn.Sequential):  # BasicUNet's stages are: a module more is one step more
        part.register_forward_hook(_selected)
    return network


def selection_of(network: nn.Module, asked_by: str) -> ChannelSelection:
    """The module that :func:`select_channels` put into a network.

    Args:
        network: the network.
        asked_by: who needs it, for the message.

    Raises:
        Refused: there is none.
    """
    found = getattr(_encoder_of(network), SELECTION, None)
    if isinstance(found, ChannelSelection):
        return found
    hint = "set network_def#site_channels to the most sites that there can be, for instance 16"
    raise Refused([Problem(asked_by, found="no channel selection", expected="a network that has one", hint=hint)])


def _selected(encoder: nn.Module, inputs: tuple[Tensor], features: list[Tensor]) -> list[Tensor]:
    """Forward hook: it finds the module in the encoder that it was called for, so that copies have their own."""
    return [*features[:-1], encoder.selection(features[-1])]  # type: ignore[operator]


def _encoder_of(network: nn.Module) -> nn.Module | None:
    """The encoder, or BasicUNet's deepest stage."""
    found = getattr(network, "encoder", getattr(network, "down_4", None))
    return found if isinstance(found, nn.Module) else None


def _deepest(part: nn.Module) -> int | None:
    channels: Any = getattr(part, "out_channels", None)
    if isinstance(channels, (list, tuple)) and channels:
        return int(channels[-1])
    found = [module.out_channels for module in part.modules() if isinstance(module, nn.Conv2d)]
    return found[-1] if found and hasattr(part, "max_pooling") else None  # MONAI's Down
