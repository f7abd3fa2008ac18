"""Features between encoder and decoder, changed for the time of a block; the last ones, listened to."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from samfed_monai.core.errors import Refused
from samfed_monai.networks import client_network
from samfed_monai.networks.features import LastFeatures, changed_features, require_encoder


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


class Halves(nn.Module):
    """Logits of half the image."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 1, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(image / 2)


def test_the_last_features_of_calls_that_train_are_kept_while_somebody_listens() -> None:
    network, image = Halves(), torch.rand(1, 3, 2, 2)
    features = LastFeatures(network)
    network(image)
    features.listen()
    network(image)
    network.eval()(image)
    with torch.no_grad():
        network.train()(image)
    network(image + 1)
    assert [torch.equal(kept, wanted / 2) for kept, wanted in zip(features.kept, (image, image + 1), strict=True)] == [
        True,
        True,
    ]
    features.listen()
    network(image)
    assert len(features.kept) == 1, "begun anew, and heard once"
    features.stop()
    network(image)
    assert (features.kept, len(network.head._forward_pre_hooks)) == ([], 0)


def test_a_network_whose_head_is_not_known_is_refused() -> None:
    with pytest.raises(Refused, match=r"network: expected a network with one of .*found Sequential; use a network of"):
        LastFeatures(nn.Sequential(nn.Conv2d(3, 1, 1)))


def test_a_network_without_an_encoder_is_refused() -> None:
    with pytest.raises(Refused, match=r"method: .*found Sequential; choose such a network, or set the weight"):
        require_encoder(nn.Sequential(nn.Conv2d(3, 1, 1)), "method")
