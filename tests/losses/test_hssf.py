"""HSSF's losses against numbers computed by hand, six pixels at a time."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from samfed_monai.losses import StructureLoss, distillation_kl, hssf_kl
from samfed_monai.methods.hssf import confidence_loss, dropout_consistency, gated_loss, lssl_labels

LN3 = math.log(3)  # the logit of 3/4


def pixels(*values: float) -> Tensor:
    """(1, 1, 2, n / 2)."""
    return torch.tensor(values, dtype=torch.float32).view(1, 1, 2, -1)


def test_wrong_pixels_weigh_right_over_wrong() -> None:
    logits = pixels(2, 1, -1, -2, 3, -3)
    label = pixels(1, 1, 0, 0, 0, 1)  # four right, the last two wrong: weight 2
    confidence = pixels(LN3, LN3, 0, 0, LN3, -LN3)  # chances of being right: 3/4 3/4 1/2 1/2 3/4 1/4
    right = 2 * math.log(4 / 3) + 2 * math.log(2)
    wrong = 2 * (math.log(4) + math.log(4 / 3))
    assert confidence_loss(confidence, logits, label).item() == pytest.approx((right + wrong) / 6, rel=1e-6)


def test_all_right_is_plain_cross_entropy_and_all_wrong_is_nothing() -> None:
    confidence, label = pixels(LN3, LN3, LN3, 0, 0, 0), pixels(1, 1, 1, 1, 1, 1)
    plain = (3 * math.log(4 / 3) + 3 * math.log(2)) / 6
    assert confidence_loss(confidence, label, label).item() == pytest.approx(plain, rel=1e-6)
    assert confidence_loss(confidence, -label, label).item() == 0


def test_confidence_leaves_the_prediction_it_judges_alone() -> None:
    logits = pixels(1, -1, 1, -1, 1, -1).requires_grad_()
    confidence = pixels(0, 0, 0, 0, 0, 0).requires_grad_()
    confidence_loss(confidence, logits, pixels(1, 1, 1, 0, 0, 0)).backward()
    assert logits.grad is None
    assert confidence.grad is not None
    # four right with weight 1, two wrong with weight 2; the gradient of a cross entropy at 0 is -1/2 and 1/2
    expected = torch.tensor([-1, 2, -1, -1, 2, -1]).view(1, 1, 2, 3) / 12
    torch.testing.assert_close(confidence.grad, expected)


def test_kl_by_hand() -> None:
    # logits 2 ln 3 and targets 0.9 (logit ln 9): softened by 2 both are 3/4; against 0 (1/2) they cost KL(3/4 || 1/2)
    divergence = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    logits = pixels(2 * LN3, 2 * LN3, 2 * LN3, 0, 0, 0)
    found = hssf_kl(logits, torch.full((1, 1, 2, 3), 0.9))
    assert found.item() == pytest.approx(3 / 6 * divergence / 2, rel=1e-4)  # mean over six pixels and two channels


def test_kl_counts_a_closed_gate_as_zero() -> None:
    logits, target = torch.zeros(2, 1, 2, 3), torch.full((2, 1, 2, 3), 0.9)
    whole = hssf_kl(logits, target).item()
    assert hssf_kl(logits, target, torch.tensor([True, False])).item() == pytest.approx(whole / 2)
    assert hssf_kl(logits, target, torch.tensor([False, False])).item() == 0


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.floats(1, 4))
def test_kl_is_that_of_two_softmax_channels(seed: int, temperature: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    pair = torch.randn(2, 2, 2, 3, generator=generator)
    target = torch.randn(2, 2, 2, 3, generator=generator)
    literal = torch.nn.functional.kl_div(
        (pair / temperature).log_softmax(1), (target / temperature).softmax(1), reduction="none"
    ).mean()
    ours = hssf_kl(pair[:, 1:] - pair[:, :1], target.softmax(1)[:, 1:], temperature=temperature)
    torch.testing.assert_close(ours, literal, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(hssf_kl(pair, target.softmax(1), temperature=temperature), literal, rtol=1e-3, atol=1e-6)


def test_kl_is_ours_without_its_factor() -> None:
    logits, target = pixels(1, -2, 3, 0, 0.5, -1), pixels(0.2, 0.7, 0.9, 0.5, 0.1, 0.4)
    torch.testing.assert_close(hssf_kl(logits, target), distillation_kl(logits, target, 2.0) / 8)


def logit(*chances: float) -> Tensor:
    return torch.logit(pixels(*chances))


def test_labels_come_from_the_surer_view_and_doubtful_ones_are_flipped() -> None:
    weak, strong = pixels(1, 1, -1, -1, 1, -1), pixels(-1, -1, 1, 1, -1, 1)
    weak_confidence = logit(0.9, 0.4, 0.9, 0.2, 0.25, 0.5)
    strong_confidence = logit(0.6, 0.8, 0.3, 0.9, 0.1, 0.5)
    chosen = lssl_labels(weak, weak_confidence, strong, strong_confidence)
    #  weak says 1; strong says 0; weak says 0; strong says 1; weak says 1 but at 0.25: flipped; equal: weak says 0
    assert chosen.label.flatten().tolist() == [1, 0, 0, 1, 0, 0]
    assert chosen.flipped.flatten().tolist() == [False, False, False, False, True, False]
    assert chosen.gate.tolist() == [False]  # (0.9 + 0.8 + 0.9 + 0.9 + 0.25 + 0.5) / 6 = 0.708


def test_an_image_counts_from_a_mean_confidence_above_the_threshold() -> None:
    zeros = torch.zeros(2, 1, 2, 3)
    confidence = torch.cat([logit(0.9, 0.9, 0.9, 0.9, 0.9, 0.1), logit(0.7, 0.7, 0.7, 0.8, 0.7, 0.7)])
    chosen = lssl_labels(zeros, confidence, zeros, torch.full_like(confidence, -9))  # means 0.767 and 0.717
    assert chosen.gate.tolist() == [True, False]
    assert lssl_labels(zeros, confidence, zeros, confidence, least_mean=0.7).gate.tolist() == [True, True]


def test_several_classes_have_no_opposite() -> None:
    with pytest.raises(ValueError, match="expected one channel, found 3; a class has no opposite"):
        lssl_labels(*(torch.zeros(1, 3, 2, 3),) * 4)


def test_images_that_do_not_count_are_zeros_in_the_mean() -> None:
    loss = StructureLoss(kernel_size=3)
    logits = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    label = (torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(1)) > 0.5).long()
    found = gated_loss(loss, logits, label, torch.tensor([True, False, True]))
    expected = (loss(logits[:1], label[:1]) + loss(logits[2:], label[2:])) / 3
    torch.testing.assert_close(found, expected)
    nothing = gated_loss(loss, logits, label, torch.zeros(3, dtype=torch.bool))
    nothing.backward()
    assert nothing.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_channels_of_two_passes_weigh_what_they_hold_of_the_image() -> None:
    dropped = torch.tensor([0.0, LN3]).view(1, 2, 1, 1).expand(1, 2, 2, 2)  # softmax: 1/4 and 3/4
    logits = dropped + torch.tensor([2.0, 1.0]).view(1, 2, 1, 1)
    assert dropout_consistency(logits, dropped).item() == pytest.approx((4 / 4 + 1 * 3 / 4) / 2)
    assert dropout_consistency(dropped, dropped).item() == 0


def test_both_passes_learn_from_their_difference() -> None:
    passes = [torch.randn(2, 2, 2, 2, generator=torch.Generator().manual_seed(n), requires_grad=True) for n in (0, 1)]
    dropout_consistency(*passes).backward()
    assert all(bool(each.grad.any()) for each in passes)
