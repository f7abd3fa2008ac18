"""Membership inference by loss: overfitted models are detected, untrained ones are not."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from samfed_monai.attacks.membership import attack_membership, auc, blind_auc, separation, tpr_at
from tests.attacks.toys import QUICK, target


def memory(pixels: int = 16) -> nn.Module:
    """A network with enough parameters to memorise a few images."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(3 * pixels**2, 64),
        nn.ReLU(),
        nn.Linear(64, pixels**2),
        nn.Unflatten(1, (1, pixels, pixels)),
    )


def test_auc_and_detection_rate_match_hand_calculation():
    members, others = np.array([3.0, 2.0, 1.0]), np.array([2.0, 0.0])
    assert auc(members, others) == pytest.approx((2 + 1.5 + 1) / 6)
    assert tpr_at(members, others, 0.01) == pytest.approx(1 / 3), "none of two others may be called a member"
    assert tpr_at(members, others, 0.5) == 1.0, "one of them may"
    random = np.random.default_rng(0)
    found = separation(random.normal(0.5, 1, 50), random.normal(0, 1, 50))
    counts = {"members": 50, "non_members": 50}
    assert found == {**counts, "auc": 0.665, "interval": [0.555, 0.767], "tpr": 0.06}, "the same draws every time"


def test_overfitted_model_is_detected_by_loss_or_confidence():
    whole = target(memory, steps=60)
    blind = [dataclasses.replace(each, labels=None) for each in whole.groups]
    for signal, attacked in (("loss", whole), ("confidence", dataclasses.replace(whole, groups=blind))):
        found = attack_membership(attacked, QUICK)
        row = next(row for row in found.rows if row["images"] == "Basel")
        assert {row["signal"] for row in found.rows} == {signal}
        assert row["auc"] > 0.8
        assert row["interval"][0] > 0.5
        assert "better than by chance" in found.verdict[1]


def test_untrained_model_reveals_no_membership():
    pooled = [attack_membership(target(memory, seed=seed, count=32), QUICK).rows[1] for seed in range(3)]
    # 32 against 32 images: one AUC's standard deviation is 0.073 (Hanley and McNeil 1982), of the mean of three 0.042
    assert abs(np.mean([row["auc"] for row in pooled]) - 0.5) < 0.13


def test_distribution_shift_is_detected_without_model():
    whole = target()
    own, others = whole.groups[1], whole.groups[2]
    assert 0.2 < blind_auc(own, [others]) < 0.8
    darker = dataclasses.replace(others, images=0.5 * others.images)
    assert blind_auc(own, [darker]) > 0.9
    found = attack_membership(dataclasses.replace(whole, groups=[own, darker]), QUICK)
    assert found.rows[0]["auc_without_model"] > 0.9


def test_global_random_state_is_unchanged():
    toy = target()
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    attack_membership(toy, QUICK)
    assert torch.equal(torch.rand(1), expected)
