"""Soft masks and prototypes: what a copy learns from the first, and what is rebuilt from the second."""

from __future__ import annotations

import dataclasses
from functools import partial

import pytest
import torch
from torch import nn

from samfed_monai.attacks.finding import against_blank, psnr
from samfed_monai.attacks.prototypes import attack_prototypes, from_prototypes, prototypes
from samfed_monai.attacks.soft_masks import attack_soft_masks, soft_masks
from samfed_monai.core.errors import Refused
from tests.attacks.test_membership import memory
from tests.attacks.toys import QUICK, target


def test_masks_are_eight_bits_and_of_public_images_alone():
    toy = target(count=4)
    public = toy.groups[0]
    masks = soft_masks(toy.network, public)
    assert masks.shape == (4, 1, 16, 16)
    assert torch.equal((masks * 255).round() / 255, masks)
    assert torch.allclose(masks, torch.sigmoid(toy.network(public.images)).detach(), atol=0.5 / 255 + 1e-6)


def test_a_copy_is_like_the_network_and_knows_no_more_members_than_it_does():
    toy = target(partial(memory, 8), steps=150, size=8)
    found = attack_soft_masks(toy, dataclasses.replace(QUICK, shadow_steps=150))
    (row,) = found.rows
    assert row["site"] == "Basel"
    assert row["auc_weights"] > 0.8
    assert row["auc_masks"] < row["auc_weights"]
    untaught = attack_soft_masks(toy, dataclasses.replace(QUICK, shadow_steps=0)).rows[0]
    assert row["agreement_dice"] > untaught["agreement_dice"]


def test_without_public_images_there_is_nothing_to_attack():
    toy = target()
    with pytest.raises(
        Refused, match="soft_masks: expected some: their masks are what is sent, found no public images"
    ):
        attack_soft_masks(dataclasses.replace(toy, groups=toy.groups[1:]), QUICK)


class Shown(nn.Module):
    """A network that hands every pixel to its head: a prototype of one uniform image is its colour."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 1, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(images)


def test_the_prototype_of_an_even_colour_gives_the_colour():
    image = torch.tensor([0.8, 0.4, 0.2])[:, None, None].expand(3, 8, 8)[None]
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1
    sent = prototypes(Shown(), image, mask)
    assert sent.means()[1] == pytest.approx([0.8, 0.4, 0.2])
    assert sent.counts.tolist() == [32, 32]
    found = from_prototypes(Shown(), sent, image.shape, dataclasses.replace(QUICK, steps=200))
    blank = torch.full((3, 8, 8), 0.5)
    assert psnr(found.mean(dim=(2, 3), keepdim=True).expand_as(image), image)[0] > 25
    assert against_blank(found, image, blank)["blank_psnr"] < 12


def test_prototypes_of_one_image_and_of_all_are_tried():
    found = attack_prototypes(target(count=3), dataclasses.replace(QUICK, steps=3))
    assert [row["images"] for row in found.rows] == [1, 3]
    assert found.rows[0]["numbers"] == 2 * 16 + 2
    assert [each.name for each in found.shown] == ["prototypes-1", "prototypes-3"]
    unknown = target(lambda: nn.Sequential(nn.Conv2d(3, 1, 1)), count=3)
    with pytest.raises(Refused, match="network: expected a network with one of"):
        attack_prototypes(unknown, QUICK)
