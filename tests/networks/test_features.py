"""Features between encoder and decoder are changed inside a block; the last ones are kept on request."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from samfed_monai.core.errors import Refused
from samfed_monai.networks import client_network
from samfed_monai.networks.features import LastFeatures, changed_features, encoder_maps, require_encoder
from tests.handlers.toy import Shown


@pytest.mark.parametrize("name", ["basic_unet", "lite0_fpn"])
def test_encoder_maps_are_changed_only_inside_block(name: str) -> None:
    torch.manual_seed(0)
    network, image = client_network(name=name, weights=None).eval(), torch.rand(1, 3, 64, 64)
    before, sizes = network(image), []

    def halved(features: torch.Tensor) -> torch.Tensor:
        sizes.append(features.shape[-1])
        return features / 2

    with torch.no_grad(), changed_features(network, halved):
        assert not torch.equal(network(image), before)
    assert len(set(sizes)) > 1
    assert torch.equal(network(image), before)


@pytest.mark.parametrize(("name", "channels"), [("basic_unet", 256), ("deeplabv3plus_resnet18", 512)])
def test_encoder_maps_are_ordered_from_fine_to_deep(name: str, channels: int) -> None:
    network = client_network(name=name, weights=None).eval()
    maps = encoder_maps(network, lambda: network(torch.rand(1, 3, 64, 64)))
    sizes = [each.shape[-1] for each in maps]
    assert sizes == sorted(sizes, reverse=True)
    assert maps[-1].shape[1] == channels
    assert maps[-1].requires_grad


def test_last_features_are_kept_while_listening() -> None:
    network, image = Shown(), torch.rand(1, 3, 2, 2)
    features = LastFeatures(network)
    network(image)
    features.listen()
    network(image)
    network.eval()(image)
    with torch.no_grad():
        network.train()(image)
    network(image + 1)
    expected = torch.stack([network.encoder(each).relu() for each in (image, image + 1)])
    assert torch.equal(torch.stack(features.inputs), expected)
    features.listen()
    network(image)
    assert len(features.inputs) == 1, "started again, and kept once"
    features.stop()
    network(image)
    assert (features.inputs, len(network.head._forward_pre_hooks)) == ([], 0)
    network, image = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Conv2d(2, 1, 1)), torch.rand(1, 3, 2, 2)
    features = LastFeatures(network, network[1])
    features.listen()
    network(image)
    assert torch.equal(features.inputs[0], network[0](image))


def test_network_without_known_head_or_encoder_is_refused() -> None:
    network = nn.Sequential(nn.Conv2d(3, 1, 1))
    message = r"network: expected a network with .*'segmentation_head'.*found Sequential; use a"
    with pytest.raises(Refused, match=message):
        LastFeatures(network)
    with pytest.raises(Refused, match=r"method: .*found Sequential; choose such a network, or set the weight"):
        require_encoder(network, "method")
