"""Reconstruction from gradients: a small network without batch norm reveals its image unless noise is added."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from samfed_monai.attacks import Options
from samfed_monai.attacks.finding import Finding, against_blank, psnr
from samfed_monai.attacks.inversion import Update, attack_inversion, cosine_distance, invert, observed, total_variation
from tests.attacks.toys import leaky_net, norm_net, plain_net, scenes, target

LOSS = nn.BCEWithLogitsLoss()


def reconstruct(network: nn.Module, update: Update, image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return invert(network, LOSS, update, image.shape, mask, torch.full(image.shape[1:], 0.5), Options(steps=60))


def test_inversion_reconstructs_image_unless_noise_is_added():
    toy = target(leaky_net)
    network, image, mask = toy.copy(), toy.private.images[:1], toy.masks_of(toy.private, 1)
    seen = observed(network, LOSS, image, mask)
    scores = against_blank(reconstruct(network, seen, image, mask), image, toy.blank)
    assert scores["psnr"] > 25 > 20 > scores["blank_psnr"]
    assert scores["reconstructed"] == 1
    assert scores["ssim"] > scores["blank_ssim"] + 0.1
    random = torch.Generator().manual_seed(0)
    length = torch.stack([each.norm() for each in seen.direction]).norm()
    noisy = Update([each + length * torch.randn(each.shape, generator=random) for each in seen.direction])
    assert against_blank(reconstruct(network, noisy, image, mask), image, toy.blank)["reconstructed"] == 0


def test_running_statistics_reveal_batch_statistics():
    """``(after - (1 - m) before) / m`` of one step, exactly."""
    network, toy = norm_net().train(), target(norm_net)
    before = copy.deepcopy(network.state_dict())
    image, mask = toy.private.images[:2], toy.masks_of(toy.private, 2)
    mean, variance = observed(network, LOSS, image, mask).statistics[0]
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items()), "it is copied"
    network(image)
    pixels = image.shape[0] * image.shape[2] * image.shape[3]
    for name, own, error in (("1.running_mean", mean, 1e-5), ("1.running_var", variance * pixels / (pixels - 1), 1e-4)):
        assert torch.allclose((network.state_dict()[name] - 0.9 * before[name]) / 0.1, own, atol=error)


def attack(network, batch: int) -> tuple[Finding, list[tuple]]:
    found = attack_inversion(target(network, count=3), Options(steps=2, batch=batch))
    return found, [(row["network"], row["observed"], row["statistics"]) for row in found.rows]


def test_every_kind_of_update_is_attacked_reproducibly():
    found, rows = attack(norm_net, 2)
    assert ("released model", "gradient of 1", "with") in rows
    assert ("random weights", "gradient of 2", "without") in rows
    assert ("released model", "update of 2, 4 steps of AdamW", "without") in rows
    assert len(found.shown) == len(rows) == 10
    assert found.shown[0].png().startswith(b"\x89PNG")
    _, none = attack(plain_net, 2)
    assert [statistics for _, _, statistics in none] == ["no running statistics"] * 6
    # one image alone: its gradient is not tried twice
    torch.manual_seed(1)
    first, one = attack(plain_net, 1)
    assert [row[:2] for row in one] == [
        (network, what)
        for network in ("released model", "random weights")
        for what in ("gradient of 1", "update of 1, 4 steps of AdamW")
    ]
    torch.manual_seed(2)
    again, _ = attack(plain_net, 1)
    assert again.rows == first.rows, "earlier random numbers have no effect"


def test_distances_match_hand_calculation():
    one, other = [torch.tensor([3.0, 0.0])], [torch.tensor([0.0, 2.0])]
    assert cosine_distance(one, one) == pytest.approx(0, abs=1e-6)
    assert cosine_distance(one, other) == pytest.approx(1)
    assert cosine_distance(one, [-one[0]]) == pytest.approx(2)
    assert total_variation(torch.tensor([[[[0.0, 1.0], [0.0, 1.0]]]])) == pytest.approx(1)
    flat = torch.full((1, 3, 4, 4), 0.5)
    assert psnr(flat + 0.1, flat)[0] == pytest.approx(20, abs=0.01)


def test_reconstruction_in_wrong_colours_is_counted():
    images, _ = scenes(2, seed=3)
    blank = torch.full((3, 16, 16), 0.5)
    scores = against_blank(0.3 * images + 0.7, images, blank)
    assert scores["psnr"] < scores["blank_psnr"] + 3
    assert scores["ssim"] > scores["blank_ssim"] + 0.1
    assert scores["reconstructed"] == 2
    assert against_blank(blank[None].expand(2, 3, 16, 16), images, blank)["reconstructed"] == 0
