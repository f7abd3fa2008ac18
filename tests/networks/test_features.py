"""Features between encoder and decoder, changed for the time of a block."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from samfed_monai.core.errors import Refused
from samfed_monai.networks import client_network
from samfed_monai.networks.features import changed_features, require_encoder


@pytest.mark.parametrize("name", ["basic_unet", "lite0_fpn"])
def test_every_map_is_seen_and_changed_inside_the_block_alone(name: str) -> None:
    torch.manual_seed(0)
    network, image = client_network(name=name, weights=None).eval(), torch.rand(1, 3, 64, 64)
    before, sizes = network(image), []

    def halved(features: torch.Tensor) -> torch.Tensor:
        sizes.append(features.shape[-1])
        return features / 2

    with torch.no_grad(), changed_features(network, halved):
        assert not torch.equal(network(image), before)
    assert len(sizes) > 1
    assert len(set(sizes)) > 1
    assert torch.equal(network(image), before)


def test_a_network_without_an_encoder_is_refused() -> None:
    with pytest.raises(Refused, match=r"method: .*found Sequential; choose such a network, or set the weight"):
        require_encoder(nn.Sequential(nn.Conv2d(3, 1, 1)), "method")
