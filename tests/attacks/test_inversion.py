"""Reconstruction from a gradient: a small network without batch norm gives its image away, its blank image does not."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from samfed_monai.attacks import Options
from samfed_monai.attacks.finding import against_blank, psnr
from samfed_monai.attacks.inversion import Update, attack_inversion, cosine_distance, invert, observed, total_variation
from tests.attacks.toys import QUICK, leaky_net, norm_net, plain_net, scenes, target

LOSS = nn.BCEWithLogitsLoss()


def leaked_statistics(
    before: dict[str, torch.Tensor], after: dict[str, torch.Tensor], momentum: float
) -> dict[str, torch.Tensor]:
    """Batch statistics of one step between two state dicts: ``(after - (1 - m) before) / m``, exact for one step."""
    names = [name for name in before if name.endswith(("running_mean", "running_var"))]
    return {name: (after[name] - (1 - momentum) * before[name]) / momentum for name in names}


def rebuilt(
    network: nn.Module, update: Update, image: torch.Tensor, mask: torch.Tensor, steps: int = 150
) -> torch.Tensor:
    grey = torch.full(image.shape[1:], 0.5)
    return invert(network, LOSS, update, image.shape, mask, grey, Options(steps=steps))


def test_one_images_gradient_is_rebuilt_where_the_blank_image_is_far_off():
    toy = target(leaky_net)
    network, image, mask = toy.copy(), toy.private.images[:1], toy.masks_of(toy.private, 1)
    found = rebuilt(network, observed(network, LOSS, image, mask), image, mask)
    scores = against_blank(found, image, toy.blank)
    assert scores["psnr"] > 25 > 20 > scores["blank_psnr"]
    assert scores["reconstructed"] == 1
    assert scores["ssim"] > scores["blank_ssim"] + 0.1


def test_noise_in_the_update_hides_the_image():
    toy = target(leaky_net)
    network, image, mask = toy.copy(), toy.private.images[:1], toy.masks_of(toy.private, 1)
    seen = observed(network, LOSS, image, mask)
    random = torch.Generator().manual_seed(0)
    length = torch.stack([each.norm() for each in seen.direction]).norm()
    noisy = Update([each + length * torch.randn(each.shape, generator=random) for each in seen.direction])
    assert against_blank(rebuilt(network, noisy, image, mask), image, toy.blank)["reconstructed"] == 0


def test_running_statistics_give_the_batchs_own_away():
    network = norm_net().train()
    toy = target(norm_net)
    before = copy.deepcopy(network.state_dict())
    image, mask = toy.private.images[:2], toy.masks_of(toy.private, 2)
    seen = observed(network, LOSS, image, mask)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items()), "it is copied"
    network(image)
    leaked = leaked_statistics(before, network.state_dict(), momentum=0.1)
    assert torch.allclose(leaked["1.running_mean"], seen.statistics[0][0], atol=1e-5)
    pixels = image.shape[0] * image.shape[2] * image.shape[3]
    assert torch.allclose(leaked["1.running_var"], seen.statistics[0][1] * pixels / (pixels - 1), atol=1e-4)


def test_every_kind_of_update_is_tried_and_shown():
    found = attack_inversion(target(norm_net, count=3), QUICK.__class__(steps=2, batch=2))
    seen = [(row["network"], row["observed"], row["statistics"]) for row in found.rows]
    assert ("released model", "gradient of 1", "with") in seen
    assert ("random weights", "gradient of 2", "without") in seen
    assert ("released model", "update of 2, 4 steps of AdamW", "without") in seen
    assert len(found.shown) == len(found.rows) == 10
    assert found.shown[0].png().startswith(b"\x89PNG")
    none = attack_inversion(target(plain_net, count=3), QUICK.__class__(steps=2, batch=2))
    assert {row["statistics"] for row in none.rows} == {"no running ones"}
    assert len(none.rows) == 6
    one = attack_inversion(target(plain_net, count=3), QUICK.__class__(steps=2, batch=1))
    networks = [(row["network"], row["observed"].partition(",")[0]) for row in one.rows]
    assert networks == [
        (network, what) for network in ("released model", "random weights") for what in ("gradient of 1", "update of 1")
    ]


def test_what_was_drawn_before_changes_nothing():
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        rows = attack_inversion(target(plain_net, count=3), QUICK.__class__(steps=2, batch=1)).rows
        found.append([row["psnr"] for row in rows])
    assert found[0] == found[1]


def test_distances_by_hand():
    one, other = [torch.tensor([3.0, 0.0])], [torch.tensor([0.0, 2.0])]
    assert cosine_distance(one, one) == pytest.approx(0, abs=1e-6)
    assert cosine_distance(one, other) == pytest.approx(1)
    assert cosine_distance(one, [-one[0]]) == pytest.approx(2)
    assert total_variation(torch.tensor([[[[0.0, 1.0], [0.0, 1.0]]]])) == pytest.approx(1)
    flat = torch.full((1, 3, 4, 4), 0.5)
    assert psnr(flat + 0.1, flat)[0] == pytest.approx(20, abs=0.01)


def test_a_likeness_in_wrong_colours_counts_as_one():
    images, _ = scenes(2, seed=3)
    blank = torch.full((3, 16, 16), 0.5)
    pale = 0.3 * images + 0.7
    scores = against_blank(pale, images, blank)
    assert scores["psnr"] < scores["blank_psnr"] + 3
    assert scores["ssim"] > scores["blank_ssim"] + 0.1
    assert scores["reconstructed"] == 2
    assert against_blank(blank[None].expand(2, 3, 16, 16), images, blank)["reconstructed"] == 0
