"""Networks that a plan names by class: layers that could copy an image are refused, ordinary networks are not."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from monai.bundle import ConfigParser
from monai.networks import nets
from torch import nn

from samfed_monai.config.targets import CATALOGUE
from samfed_monai.networks import client_network
from samfed_monai.privacy.network_check import reading_layers, require_plain_network
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


class Deep(nn.Module):
    """Maps whose every value hangs on the whole image, flattened before a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Sequential(nn.Conv2d(3, 64, 15, stride=8, padding=7), nn.Conv2d(64, 64, 9, padding=4))
        self.linear = nn.Linear(64 * 16, 32 * 32)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.linear(self.mix(images).flatten(1)).reshape(-1, 1, 32, 32)


class Tokens(nn.Module):
    """A transformer on patches of 16 px that are as wide as a ViT's."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 800, 16, stride=16)
        self.block = nn.TransformerEncoderLayer(800, 4, dim_feedforward=1024, batch_first=True)
        self.out = nn.ConvTranspose2d(800, 1, 16, stride=16)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.patches(images)
        tokens = self.block(maps.flatten(2).transpose(1, 2))
        return self.out(tokens.transpose(1, 2).reshape(maps.shape))


@pytest.mark.parametrize(
    ("network", "layer"),
    [
        (lambda: nets.Generator(**PLANTED), "linear"),
        (Shuffled, "linear"),
        (lambda: Shuffled(3), "linear"),
        (Deep, "linear"),
        (lambda: nn.Sequential(nn.Conv2d(3, 8, 32), nn.ConvTranspose2d(8, 1, 32)), "0"),
    ],
)
def test_a_layer_with_a_weight_for_each_place_is_found_whatever_was_sent_as_weights(network, layer):
    made = network()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.zero_()
    assert layer in reading_layers(made, SHAPE)
    assert all(not parameter.any() for parameter in made.parameters()), "it looks at a copy"


@pytest.mark.parametrize("name", ["basic_unet", "lite0_fpn", "deeplabv3plus_resnet18", "flexible_unet_resnet18"])
def test_networks_of_the_catalogue_have_none(name):
    assert reading_layers(client_network(name), (3, 64, 64)) == []


@pytest.mark.parametrize(
    "network",
    [
        ToyNet,
        lambda: nets.AttentionUnet(2, 3, 1, channels=(8, 16), strides=(2,)),
        Tokens,
    ],
)
def test_ordinary_networks_of_monai_have_none(network):
    assert reading_layers(network(), SHAPE if network is not ToyNet else (3, 40, 40)) == []


def test_another_network_than_the_one_of_the_catalogue_that_a_plan_declares_is_looked_at():
    plan = {
        "network_def": {"_target_": CATALOGUE, "name": "basic_unet"},
        "network": {"_target_": "samfed_monai.bundle.on_device", "network": "@network_def", "device": "cpu"},
    }
    for network, found in (
        ({}, 0),
        ({"network#network": {"_target_": "monai.networks.nets.Generator", **PLANTED, "latent_shape": [3, 64, 64]}}, 1),
    ):
        client, parser = toy_algo(), ConfigParser(plan)
        parser.update(pairs=network)
        client.trainer.network, client.train_workflow.parser = parser.get_parsed_content("network"), parser
        with pytest.raises(MessageRefused, match="found 1 such") if found else nullcontext():
            require_plain_network(client)


def test_a_site_that_only_evaluates_is_let_alone():
    require_plain_network(SimpleNamespace(train_workflow=None, trainer=None))
    require_plain_network(SimpleNamespace(train_workflow=None, trainer=object()))  # nor one whose network no plan names


class Wide(nn.Module):
    """A linear layer on so many values of a map, in their order."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.linear = nn.Linear(count, 1)
        self.count = count

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.linear(images.flatten(1)[:, : self.count])


class Twice(nn.Module):
    """A layer that gives two maps, of which the second is read place by place."""

    def __init__(self) -> None:
        super().__init__()
        self.both, self.linear = _Both(), nn.Linear(32 * 32, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.linear(self.both(images)[1].flatten(1))


class _Both(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(3, 1, 31, padding=15, bias=False)  # a value of its own hangs on the whole image

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mixed = torch.fft.fft2(images.sum(1, keepdim=True)).real
        return images.mean((1, 2, 3)), mixed


def test_a_layer_may_read_so_many_values_and_no_more():
    network, state = Wide(768), torch.get_rng_state()
    assert reading_layers(network, SHAPE) == []
    assert torch.equal(torch.get_rng_state(), state), "its random weights are not of the numbers that training draws"
    assert reading_layers(Wide(769), SHAPE) == ["linear"]


def test_a_row_of_numbers_that_a_layer_gives_is_no_map():
    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 900), nn.Linear(900, 1))
    assert reading_layers(pooled, SHAPE) == []


def test_a_layer_that_no_pixel_moves_is_let_alone():
    class Constant(Wide):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.linear(torch.linspace(0, 1, 769)[None])

    assert reading_layers(Constant(769), SHAPE) == []


def test_of_several_maps_that_a_layer_gives_each_is_looked_at():
    assert "linear" in reading_layers(Twice(), SHAPE)


@pytest.mark.parametrize(("kernel", "found"), [(16, []), (17, ["0"])])
def test_a_kernel_may_have_so_many_places_and_no_more(kernel, found):
    assert reading_layers(nn.Sequential(nn.Conv2d(3, 1, kernel)), SHAPE) == found


def test_refusals_in_full():
    hint = "name a network of the catalogue, or install it at the site as a package that registers it"
    for shape, problem in (
        ((3, 32, 32), "one that takes an image of this size, found a network that cannot be looked at"),
        (
            (3, 64, 64),
            "no layer with a weight for each place of an image: its update would hold the image, found 1 such",
        ),
    ):
        client = toy_algo()
        client.trainer.network = nets.Generator(**{**PLANTED, "latent_shape": shape})
        with pytest.raises(MessageRefused) as error:
            require_plain_network(client)
        assert [str(each) for each in error.value.problems] == [f"plan -> network_def: expected {problem}; {hint}"]
