"""Where the features of each network of the catalogue are."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from samfed_monai.core.errors import Refused
from samfed_monai.networks import client_network
from samfed_monai.networks.intake import feature_width, head_of


@pytest.mark.parametrize(
    ("name", "width"), [("deeplabv3plus_resnet18", 256), ("flexible_unet_resnet18", 16), ("basic_unet", 32)]
)
def test_the_head_takes_features_of_that_width(name, width):
    network = client_network(name)
    assert feature_width(network) == width
    seen = []
    handle = head_of(network).register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape[1]))
    with torch.no_grad():
        network.eval()(torch.rand(1, 3, 32, 32))
    handle.remove()
    assert seen == [width]


def test_a_network_without_a_known_head_is_refused():
    with pytest.raises(
        Refused, match=r"network: expected a network with one of .*'segmentation_head'.*found Sequential"
    ):
        head_of(nn.Sequential(nn.Conv2d(3, 1, 1)))
