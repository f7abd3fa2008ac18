"""Networks that a plan declares: layers that could copy an image are refused, ordinary networks are not."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from monai.bundle import ConfigParser
from monai.networks import nets
from torch import nn

from samfed_monai.core.model_file import CATALOGUE
from samfed_monai.networks import client_network
from samfed_monai.privacy.network_check import copying_layers, require_plain_network
from samfed_monai.protocol import MessageRefused
from tests.federation.toys import ToyNet, toy_algo

SHAPE = (3, 32, 32)
PLANTED = {
    "latent_shape": (3, 32, 32), "start_shape": (1, 32, 32), "channels": (1,), "strides": (1,),
    "kernel_size": 1, "num_res_units": 0,
}  # fmt: skip


class Shuffled(nn.Module):
    """A linear layer behind a shuffle of all pixels, so that no map is seen as it is flattened."""

    def __init__(self, share: int = 1) -> None:
        super().__init__()
        self.order = torch.randperm(3 * 32 * 32, generator=torch.Generator().manual_seed(0))[::share]
        self.linear = nn.Linear(len(self.order), 32 * 32)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.linear(images.flatten(1)[:, self.order]).reshape(-1, 1, 32, 32)


def deep() -> nn.Module:
    """A linear layer after flattened maps; each value of these depends on the whole image."""
    maps = [nn.Conv2d(3, 64, 15, stride=8, padding=7), nn.Conv2d(64, 64, 9, padding=4), nn.Flatten()]
    return nn.Sequential(*maps, nn.Linear(64 * 16, 32 * 32), nn.Unflatten(1, (1, 32, 32)))


class Tokens(nn.Module):
    """A transformer on patches of 16 px that are as wide as a ViT's."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 800, 16, stride=16)
        self.block = nn.TransformerEncoderLayer(800, 4, dim_feedforward=1024, batch_first=True)
        self.out = nn.ConvTranspose2d(800, 1, 16, stride=16)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.patches(images)
        return self.out(self.block(maps.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(maps.shape))


class Wide(nn.Module):
    """A linear layer on the first values of a map, or on as many constants, which no pixel changes."""

    def __init__(self, count: int, constant: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(count, 1)
        self.constant = torch.linspace(0, 1, count)[None] if constant else None

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        read = images.flatten(1)[:, : self.linear.in_features]
        return self.linear(read if self.constant is None else self.constant)


class Both(nn.Module):
    """A row of numbers, and a map in which each value depends on the whole image."""

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return images.mean((1, 2, 3)), torch.fft.fft2(images.sum(1, keepdim=True)).real


class Second(nn.Module):
    """Reads the second output of a layer, a map."""

    def __init__(self) -> None:
        super().__init__()
        self.both, self.linear = Both(), nn.Linear(32 * 32, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.linear(self.both(images)[1].flatten(1))


@pytest.mark.parametrize(
    ("network", "layer"),
    [
        (lambda: nets.Generator(**PLANTED), "linear"),
        (Shuffled, "linear"),
        (lambda: Shuffled(3), "linear"),
        (deep, "3"),
        (Second, "linear"),
        (lambda: nn.Sequential(nn.Conv2d(3, 8, 32), nn.ConvTranspose2d(8, 1, 32)), "0"),
    ],
)
def test_image_reading_layers_are_found(network, layer):
    made = network()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.zero_()
    assert layer in copying_layers(made, SHAPE)
    assert all(not parameter.any() for parameter in made.parameters()), "it looks at a copy"


@pytest.mark.parametrize("name", ["basic_unet", "lite0_fpn", "deeplabv3plus_resnet18", "flexible_unet_resnet18"])
def test_catalogue_networks_have_no_reading_layers(name):
    assert copying_layers(client_network(name), (3, 64, 64)) == []


@pytest.mark.parametrize(
    ("network", "found"),
    [
        (ToyNet(), []),
        (nets.AttentionUnet(2, 3, 1, channels=(8, 16), strides=(2,)), []),
        (Tokens(), []),
        (Wide(768), []),  # so many values, or places of a kernel, and no more
        (Wide(769), ["linear"]),
        (nn.Sequential(nn.Conv2d(3, 1, 16)), []),
        (nn.Sequential(nn.Conv2d(3, 1, 17)), ["0"]),
        (Wide(769, constant=True), []),  # no pixel moves what it reads
        # a row of numbers that a layer gives is no map
        (nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 900), nn.Linear(900, 1)), []),
    ],
)
def test_ordinary_networks_pass_up_to_size_limit(network, found):
    state = torch.get_rng_state()
    assert copying_layers(network, SHAPE) == found
    assert torch.equal(torch.get_rng_state(), state), "its random weights are not of the numbers that training draws"


def test_network_other_than_declared_is_checked():
    plan = {
        "network_def": {"_target_": CATALOGUE, "name": "basic_unet"},
        "network": {"_target_": "samfed_monai.bundle.on_device", "network": "@network_def", "device": "cpu"},
    }
    other = {"_target_": "monai.networks.nets.Generator", **PLANTED, "latent_shape": [3, 64, 64]}
    for replaced, outcome in (
        ({}, nullcontext()),
        ({"network#network": other}, pytest.raises(MessageRefused, match="found 1 such")),
    ):
        client, parser = toy_algo(), ConfigParser(plan)
        parser.update(pairs=replaced)
        client.trainer.network, client.train_workflow.parser = parser.get_parsed_content("network"), parser
        with outcome:
            require_plain_network(client)
    require_plain_network(SimpleNamespace(train_workflow=None, trainer=None))  # a site that only evaluates
    require_plain_network(SimpleNamespace(train_workflow=None, trainer=object()))  # nor one without a named network


def test_refused_networks_are_reported_with_hint():
    hint = "choose a network of the catalogue, or install one at the site with a package that registers it"
    for shape, problem in (
        ((3, 32, 32), "a network that accepts an image of this size, found a network that cannot be checked"),
        ((3, 64, 64), "no layer with one weight per pixel, whose update would reveal the image, found 1 such"),
    ):
        client = toy_algo()
        client.trainer.network = nets.Generator(**{**PLANTED, "latent_shape": shape})
        with pytest.raises(MessageRefused) as error:
            require_plain_network(client)
        assert [str(each) for each in error.value.problems] == [f"plan -> network_def: expected {problem}; {hint}"]
