"""SAM in MONAI's trainer: its recipe by hand, and what a fit goes on from."""

from __future__ import annotations

import json
import math

import pytest
import torch

from samfed_monai.core.io import safe_load, save_tensors
from samfed_monai.teacher import training


def test_mask_loss_matches_hand_calculation():
    logits, target = torch.zeros(1, 1, 1, 2), torch.tensor([[[[1.0, 0.0]]]])
    # p = 0.5: CE = ln 2; Dice = (2 * 0.5 + 1) / (2 * 0.25 + 1 + 1) = 2 / 2.5
    assert float(training.mask_loss(logits, target)) == pytest.approx(0.2 * math.log(2) + 0.8 * (1 - 2 / 2.5))


def test_learning_rate_has_warmup_and_poly_decay():
    rates = [training.learning_rate_at(step, 100, 1.0) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1.0
    assert rates[55] == pytest.approx(0.5**0.9)
    assert rates[99] == pytest.approx((1 / 90) ** 0.9)
    assert training.learning_rate_at(124, 100_000, 1.0) == 0.5  # SAMed's 250 steps at most
    pairs = ("vit_b", "lora"), ("vit_t", "lora"), ("vit_t", "decoder")
    assert [training.default_learning_rate(*pair) for pair in pairs] == [5e-3, 5e-4, 3e-4]
    assert (training.default_epochs("lora"), training.default_epochs("decoder")) == (24, 12)


def test_quarter_is_mean_of_each_block():
    mask = torch.zeros(1, 1, 4, 8)
    mask[..., :2, :4] = 1
    assert training.quarter(mask).tolist() == [[[[0.5, 0.0]]]]


def test_fit_state_restores_moments_or_is_ignored(tmp_path):
    def stepped(steps: int) -> torch.optim.Optimizer:
        weight = torch.nn.Parameter(torch.ones(2))
        optimizer = torch.optim.AdamW([weight], lr=0.25)
        for _ in range(steps):
            weight.grad = torch.full((2,), 0.5)
            optimizer.step()
        return optimizer

    path, trained = tmp_path / "state.safetensors", stepped(2)
    training.save_state(path, training.FitState("a fit", epoch=3), trained, {"current": {"w": torch.ones(1)}})
    fresh = stepped(0)
    found = training.load_state(path, "a fit", fresh)
    assert found is not None
    assert (found[0].epoch, found[1]) == (3, {"current": {"w": torch.ones(1)}})
    (expected,), (moments,) = trained.state.values(), fresh.state.values()
    assert moments.keys() == expected.keys() == {"step", "exp_avg", "exp_avg_sq"}
    assert all(torch.equal(moments[name], value) for name, value in expected.items())
    tensors = {name: tensor for name, tensor in safe_load(path).items() if name != "optimizer.plain"}
    state = {"state": json.dumps({"fit_hash": "a fit", "epoch": 3})}
    save_tensors(path, tensors, state)  # without the optimizer's numbers
    assert training.load_state(path, "a fit", stepped(0)) is None
