"""Channels of an encoder's features, dropped for the time of a block."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from samfed_monai.core.errors import Refused
from samfed_monai.methods.unimatch import feature_dropout, require_encoder
from samfed_monai.networks import client_network

NETWORKS = ["basic_unet", "flexible_unet_resnet18", "deeplabv3plus_resnet18"]


class Toy(nn.Module):
    """An encoder that returns the image and 1,000 channels of ones, and a decoder that hands them on."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder()

    def forward(self, image: Tensor) -> list[Tensor]:
        return self.encoder(image)


class Encoder(nn.Module):
    def forward(self, image: Tensor) -> list[Tensor]:
        return [image, torch.ones(image.shape[0], 1000, 2, 2)]


def test_whole_channels_go_and_the_rest_is_scaled() -> None:
    torch.manual_seed(0)
    image, network = torch.ones(2, 3, 4, 4), Toy().eval()
    with feature_dropout(network, 0.75):
        seen, features = network(image)
    assert seen is image  # the image is no feature
    assert set(features.unique().tolist()) == {0.0, 4.0}
    assert torch.equal(features[..., 0, 0], features[..., 1, 1])
    # 2,000 draws of a chance of 0.75: standard deviation 0.01, five of them
    assert (features == 0).float().mean().item() == pytest.approx(0.75, abs=0.05)
    assert network(image)[1].unique().tolist() == [1.0]


@pytest.mark.parametrize("name", NETWORKS)
def test_our_networks(name: str) -> None:
    torch.manual_seed(0)
    network = client_network(name).eval()
    image = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        plain = network(image)
        with feature_dropout(network, 0.0):
            assert torch.equal(network(image), plain)
        with feature_dropout(network, 0.5):
            first, second = network(image), network(image)
        assert torch.equal(network(image), plain)  # and nothing is left of it
    assert not torch.equal(first, plain)
    assert not torch.equal(first, second)


def test_basic_unet_drops_every_map_of_the_encoder_once(monkeypatch: pytest.MonkeyPatch) -> None:
    network, channels = client_network("basic_unet"), []
    original = nn.functional.dropout2d
    monkeypatch.setattr(
        nn.functional, "dropout2d", lambda x, *a, **k: channels.append(x.shape[1]) or original(x, *a, **k)
    )
    with feature_dropout(network, 0.5):
        network(torch.rand(1, 3, 32, 32))
    assert channels == [256, 128, 64, 32, 32]  # the deepest map and the skip beside it, then one skip for each stage


def test_a_network_without_an_encoder_is_refused() -> None:
    message = r"terms#unimatch: expected an encoder that returns .*BasicUNet\), found Sequential; choose such a network"
    with pytest.raises(Refused, match=message):
        require_encoder(nn.Sequential(nn.Conv2d(3, 1, 1)), "terms#unimatch")


def test_an_encoder_that_returns_something_else_is_refused() -> None:
    network = Toy()
    network.encoder.forward = lambda image: {"features": image}  # type: ignore[method-assign]
    with feature_dropout(network), pytest.raises(Refused, match="found an encoder that returns dict"):
        network(torch.ones(1, 3, 4, 4))
