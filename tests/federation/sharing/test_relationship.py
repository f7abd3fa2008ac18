"""APPLE's formulas by hand: mixture, gradient of the shares, fading pull."""

from __future__ import annotations

import pytest
import torch

from samfed_monai.methods.apple import annealed, personal_model, shares_gradient

CORES = torch.tensor([[1.0, 0.0, 2.0, -1.0, 4.0, 0.0], [0.0, 2.0, 2.0, 1.0, 0.0, 8.0]])


def test_the_personal_model_is_the_mixture():
    found = personal_model(torch.tensor([0.75, 0.25]), CORES)
    assert found.tolist() == [0.75, 0.5, 2.0, -0.5, 3.0, 2.0]


def test_the_gradient_of_the_shares_by_hand_and_by_autograd():
    prior, target = torch.tensor([0.5, 0.5]), torch.tensor([1.0, 1.0, 1.0, 0.0, 1.0, 1.0])
    shares = torch.tensor([0.75, 0.25], requires_grad=True)
    model = shares @ CORES
    loss = 0.5 * (model - target).square().sum() + 0.5 * 0.2 * (shares - prior).square().sum()
    loss.backward()
    gradient = (model - target).detach()  # -0.25, -0.5, 1, -0.5, 2, 1
    found = shares_gradient(gradient, CORES, shares.detach(), prior, 0.2)
    torch.testing.assert_close(found, shares.grad)
    # <g, c_0> = -0.25 + 2 + 0.5 + 8 = 10.25, <g, c_1> = -1 + 2 - 0.5 + 8 = 8.5; the pull adds 0.2 * 0.25 and takes it
    assert found.tolist() == pytest.approx([10.30, 8.45])


def test_the_pull_fades_and_is_gone_after_its_rounds():
    exponential = [annealed(round, 20, fraction=0.2) for round in range(6)]
    assert exponential == pytest.approx([1.0, 0.001**0.25, 0.001**0.5, 0.001**0.75, 0.0, 0.0])
    cosine = [annealed(round, 20, schedule="cosine", fraction=0.2) for round in range(5)]
    assert cosine == pytest.approx([1.0, (0.5**0.5 + 1) / 2, 0.5, (1 - 0.5**0.5) / 2, 0.0])
    assert annealed(0, 5, fraction=0.1) == 0.0, "a tenth of five rounds is none"
