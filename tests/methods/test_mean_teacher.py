"""Mean Teacher: the measure by hand, and the term with its moving average."""

from __future__ import annotations

import math

import pytest
import torch

from samfed_monai.handlers import Guidance
from samfed_monai.methods.mean_teacher import ConsistencyTerm, consistency_mse

LOGITS = torch.tensor([[[[0.0, math.log(3)]]]])  # probabilities 0.5 and 0.75


def test_mse_gradient_matches_hand_computed_values() -> None:
    logits = LOGITS.clone().requires_grad_()
    consistency_mse(logits, torch.tensor([[[[1.0, 0.75]]]])).backward()
    # d/dz (p - 1)^2 / 2 pixels = 2 (0.5 - 1) 0.5 (1 - 0.5) / 2
    assert logits.grad is not None
    assert logits.grad.flatten().tolist() == pytest.approx([-0.125, 0.0], abs=1e-6)


def test_mse_is_averaged_over_classes() -> None:
    logits = torch.zeros(1, 4, 1, 1)
    guide = torch.tensor([1.0, 0.0, 0.0, 0.0]).view(1, 4, 1, 1)
    assert consistency_mse(logits, guide).item() == pytest.approx((0.75**2 + 3 * 0.25**2) / 4)


def test_term_compares_strong_view_with_guide() -> None:
    student = torch.zeros(1, 1, 1, 2)
    given = Guidance(student=student, weak_view=student, guides={"ema": torch.tensor([[[[1.0, 0.5]]]])})
    assert ConsistencyTerm().value(given, None).item() == pytest.approx(0.125)  # type: ignore[arg-type]
    assert ConsistencyTerm(guide="sam").needs == ("sam",)
