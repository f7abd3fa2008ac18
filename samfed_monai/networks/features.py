"""Where a segmentation network's last features are: the input of its head."""

from __future__ import annotations

from torch import nn

from samfed_monai.errors import Problem, Refused

#: Names of the last module before the logits, by kind of network; its input are the features.
HEADS = ("segmentation_head", "final_conv", "head")


def head_of(network: nn.Module) -> nn.Module:
    """The module that makes logits of features.

    Raises:
        Refused: a network without one of :data:`HEADS`.
    """
    for name in HEADS:
        head = getattr(network, name, None)
        if isinstance(head, nn.Module):
            return head
    expected = f"a network with one of {list(HEADS)}"
    mend = "use a network of the catalogue, or name its head like one of these"
    raise Refused([Problem("network", found=type(network).__name__, expected=expected, mend=mend)])


def feature_width(network: nn.Module) -> int:
    """Channels of the features: inputs of the head's first convolution."""
    for module in head_of(network).modules():
        if isinstance(module, nn.modules.conv._ConvNd):
            return int(module.in_channels)
    raise Refused([Problem("network", found="a head without a convolution", expected="one")])
