"""Losses and labels of single pixels by hand."""

from __future__ import annotations

import math

import pytest
import torch

from samfed_monai.data.weak_labels import IGNORE
from samfed_monai.losses import (
    StructureLoss,
    dice_of_labels,
    distillation_kl,
    hard_label,
    logits_kl,
    probabilities,
    weighted_pseudo_label_loss,
)
from samfed_monai.losses.pixelwise import CLIP, channels, entropy, hssf_kl, sure_label, without_label


def test_single_class_uses_sigmoid() -> None:
    logits = torch.tensor([[[[0.0, math.log(3)]]]])  # probabilities 1/2 and 3/4
    truth, entropy, prediction = channels(logits, torch.tensor([[[[1, 0]]]]))
    assert truth.dtype == torch.float32
    assert truth.flatten().tolist() == [1, 0]
    assert prediction.flatten().tolist() == pytest.approx([1 / 2, 3 / 4])
    assert entropy.flatten().tolist() == pytest.approx([math.log(2), math.log(4)])


def test_several_classes_use_softmax_without_background() -> None:
    logits = torch.tensor([0.0, math.log(2), math.log(5)]).reshape(1, 3, 1, 1)  # probabilities 1/8, 2/8 and 5/8
    truth, entropy, prediction = channels(logits.expand(1, 3, 1, 2), torch.tensor([[[[0, 1]]]]))
    assert truth[0, :, 0].tolist() == [[0, 1], [0, 0]], "a class that no pixel has keeps its channel"
    assert prediction[0, :, 0, 0].tolist() == pytest.approx([2 / 8, 5 / 8])
    assert entropy.shape == (1, 1, 1, 2)
    assert entropy.flatten().tolist() == pytest.approx([math.log(8), math.log(8 / 2)])


def test_dice_of_empty_masks_is_1_and_of_one_empty_mask_0() -> None:
    empty, full = torch.zeros(1, 1, 2, 2).long(), torch.ones(1, 1, 2, 2).long()
    assert dice_of_labels(empty, empty).tolist() == [1.0]
    assert dice_of_labels(empty, full).tolist() == [0.0]


def test_hard_label_of_probability_one_half_is_background() -> None:
    label, confidence = hard_label(torch.full((1, 1, 1, 1), 0.5))
    assert (label.item(), confidence.item()) == (0, 0.5)
    label, sure = sure_label(torch.tensor([0.75, 0.5, 0.125]).view(1, 1, 1, 3), tau=0.75)
    assert (label.flatten().tolist(), sure.flatten().tolist()) == ([1, 0, 0], [0.0, 0.0, 1.0]), "above tau"
    assert sure.dtype == torch.float32


def test_entropy_is_in_nats() -> None:
    one = entropy(torch.tensor([0.25, 0.5, 0.0, 1.0]).view(1, 1, 1, 4)).flatten().tolist()
    assert one == pytest.approx([math.log(4) - 0.75 * math.log(3), math.log(2), 0.0, 0.0], abs=3e-6)
    three = entropy(torch.tensor([0.5, 0.25, 0.25]).view(1, 3, 1, 1).expand(2, 3, 2, 1))
    assert three.shape == (2, 1, 2, 1)
    assert three.flatten().tolist() == pytest.approx([1.5 * math.log(2)] * 4)
    assert entropy(torch.full((1, 2, 1, 1), 0.5)).item() == pytest.approx(math.log(2)), "one row of pixels"


def test_pixels_without_label_are_255_or_0_in_all_planes() -> None:
    assert without_label(torch.tensor([[[0, 1, IGNORE]]])).tolist() == [[[False, False, True]]]
    planes = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 0]]).view(1, 3, 1, 3)
    assert without_label(planes).tolist() == [[[[False, False, True]]]]
    two = torch.tensor([[1, 0, 0], [0, 1, 0]]).view(2, 1, 3)
    assert without_label(two).tolist() == [[[False, False, True]]]


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_losses_keep_dtype_of_logits(classes: int, dtype: torch.dtype) -> None:
    logits = torch.zeros(2, classes, 4, 4, dtype=dtype)
    target, soft, weight = torch.ones(2, 1, 4, 4), torch.full((2, classes, 4, 4), 0.3), torch.full((2, 1, 4, 4), 0.7)
    for label in (target, soft):
        assert {part.dtype for part in channels(logits, label)} == {dtype}
    losses = [weighted_pseudo_label_loss(logits, target, weight), logits_kl(logits, soft)]
    losses += [StructureLoss(kernel_size=3)(logits, target, weight)]
    assert [loss.dtype for loss in losses] == [dtype] * 3


def test_pseudo_label_loss_matches_hand_calculation() -> None:
    logits = torch.zeros(1, 1, 1, 3)
    label = torch.tensor([[[[1, 0, 1]]]])
    weight = torch.tensor([[[[1.0, 0.5, 0.0]]]])
    # CE: ln 2 on every counted pixel; Dice: (2 * 0.5 + 1) / (0.75 + 1 + 1) = 2 / 2.75
    assert weighted_pseudo_label_loss(logits, label, weight).item() == pytest.approx(math.log(2) + 1 - 2 / 2.75)
    # a sum below 1 is divided out, too: CE = ln 2; Dice = (2 / 8 + 1) / (1 / 8 + 1 / 4 + 1)
    found = weighted_pseudo_label_loss(logits, label, torch.tensor([[[[0.25, 0.0, 0.0]]]]))
    assert found.item() == pytest.approx(math.log(2) + 1 - 1.25 / 1.375)


def test_images_are_weighted_by_sum_of_pixel_weights() -> None:
    logits = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    label = (logits < 0).long()
    weight = torch.stack([torch.full((1, 4, 4), 0.75), torch.full((1, 4, 4), 0.25)])
    first, second = (weighted_pseudo_label_loss(logits[i : i + 1], label[i : i + 1], weight[i : i + 1]) for i in (0, 1))
    torch.testing.assert_close(weighted_pseudo_label_loss(logits, label, weight), 0.75 * first + 0.25 * second)


def test_zero_weight_gives_zero_loss_and_gradient() -> None:
    logits = torch.randn(2, 1, 4, 4, requires_grad=True)
    loss = weighted_pseudo_label_loss(logits, torch.ones(2, 1, 4, 4), torch.zeros(2, 1, 4, 4))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad.abs().max() == 0


def test_two_class_losses_equal_binary_losses() -> None:
    generator = torch.Generator().manual_seed(3)
    logit = torch.randn(2, 1, 5, 5, generator=generator)
    label = torch.randint(0, 2, (2, 1, 5, 5), generator=generator)
    weight = torch.rand(2, 1, 5, 5, generator=generator)
    two = torch.cat([torch.zeros_like(logit), logit], dim=1)
    expected = weighted_pseudo_label_loss(logit, label, weight)
    torch.testing.assert_close(weighted_pseudo_label_loss(two, label, weight), expected)
    logit = torch.randn(2, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    teacher = torch.rand(2, 1, 3, 3, generator=torch.Generator().manual_seed(1)) * 0.9 + 0.05
    two = torch.cat([torch.zeros_like(logit), logit], dim=1)
    found = distillation_kl(two, torch.cat([1 - teacher, teacher], dim=1))
    torch.testing.assert_close(found, distillation_kl(logit, teacher), atol=1e-5, rtol=1e-4)


def bernoulli_kl(p: float, q: float) -> float:
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


def test_distillation_weights_are_normalised_and_scale_is_not() -> None:
    logits = torch.zeros(2, 1, 1, 2)
    teacher = torch.tensor([[[[0.8, 0.3]]], [[[0.6, 0.9]]]])
    weight = torch.tensor([[[[1.0, 0.0]]], [[[0.5, 0.5]]]])
    kl = {p: bernoulli_kl(p, 0.5) for p in (0.8, 0.3, 0.6, 0.9)}
    plain = (kl[0.8] + 0.5 * kl[0.6] + 0.5 * kl[0.9]) / 2
    assert distillation_kl(logits, teacher, 1, weight).item() == pytest.approx(plain, rel=1e-4)
    scaled = (0.5 * kl[0.8] + 0.0) / 2
    found = distillation_kl(logits, teacher, 1, weight, torch.tensor([0.5, 0.0]))
    assert found.item() == pytest.approx(scaled, rel=1e-4)
    assert distillation_kl(logits, teacher, 1, torch.zeros_like(weight)).item() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_divergence_is_finite_for_probabilities_0_and_1(dtype: torch.dtype) -> None:
    logits = torch.zeros(1, 1, 1, 2, dtype=dtype, requires_grad=True)
    loss = distillation_kl(logits, torch.tensor([[[[0.0, 1.0]]]], dtype=dtype), 1)
    loss.backward()
    assert (loss.dtype, loss.item()) == (torch.float32, pytest.approx(bernoulli_kl(CLIP, 0.5), rel=1e-3))
    assert bool(logits.grad.isfinite().all())


@pytest.mark.parametrize("temperature", [1.0, 2.0, 3.0])
def test_equal_logits_have_zero_divergence(temperature: float) -> None:
    logits = torch.tensor([-15.0, 15.0, -9.3, 40.0, 0.1, -0.0]).view(1, 1, 2, 3).requires_grad_()
    loss = logits_kl(logits, logits, temperature)
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()
    assert distillation_kl(logits, probabilities(logits), temperature) > 0, "a stored mask is clipped"


def test_divergences_of_three_classes_match_probabilities() -> None:
    classes = torch.tensor([0.5, 0.3, 0.2]).log().view(1, 3, 1, 1)
    expected = sum(p * math.log(p / (1 / 3)) for p in (0.5, 0.3, 0.2))
    assert logits_kl(torch.zeros(1, 3, 1, 1), classes, 1).item() == pytest.approx(expected, rel=1e-4)
    teacher = torch.tensor([0.5, 0.3, 0.2]).view(1, 3, 1, 1)
    expected = sum(p * math.log(p * 3) for p in (0.5, 0.3, 0.2)) / 3
    assert hssf_kl(torch.zeros(1, 3, 1, 1), teacher, temperature=1).item() == pytest.approx(expected, rel=1e-4)
    two = torch.zeros(2, 3, 1, 1), teacher.expand(2, 3, 1, 1)
    gated = hssf_kl(*two, torch.tensor([True, False]), temperature=1).item()
    assert gated == pytest.approx(expected / 2, rel=1e-4), "an image with a closed gate counts as 0"


def test_gradient_reaches_student_and_not_teacher() -> None:
    logits = torch.zeros(1, 1, 1, 2, requires_grad=True)
    teacher = torch.tensor([[[[0.9, 0.1]]]], requires_grad=True)
    distillation_kl(logits, teacher).backward()
    assert logits.grad[..., 0] < 0 < logits.grad[..., 1]
    assert teacher.grad is None


def test_probabilities_use_sigmoid_or_softmax() -> None:
    assert probabilities(torch.tensor([[[[0.0, math.log(3)]]]])).flatten().tolist() == pytest.approx([0.5, 0.75])
    logits = torch.tensor([math.log(2), math.log(5), math.log(3)]).view(1, 3, 1, 1).expand(1, 3, 2, 1)
    assert probabilities(logits)[0, :, 1, 0].tolist() == pytest.approx([0.2, 0.5, 0.3])
    assert probabilities(logits[:, :, :1])[0, :, 0, 0].tolist() == pytest.approx([0.2, 0.5, 0.3])


def test_multiclass_distillation_is_weighted_per_image() -> None:
    teacher = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]).view(2, 3, 1, 1)
    kl = [sum(p * math.log(p * 3) for p in row) for row in ((0.5, 0.3, 0.2), (0.1, 0.1, 0.8))]
    found = distillation_kl(torch.zeros(2, 3, 1, 1), teacher, 1, torch.tensor([1.0, 0.25]).view(2, 1, 1, 1))
    assert found.item() == pytest.approx((kl[0] + 0.25 * kl[1]) / 1.25, rel=1e-4)


def test_default_temperature_is_two_and_its_square_scales_divergence() -> None:
    # logit(0.9) / 2 = ln 3, so the softened teacher is 3/4; the student's ln 4 / 2 = ln 2 gives 2/3
    logits, teacher = torch.full((1, 1, 1, 1), math.log(4)), torch.full((1, 1, 1, 1), 0.9)
    expected = pytest.approx(4 * bernoulli_kl(3 / 4, 2 / 3), rel=1e-4)
    assert (distillation_kl(logits, teacher).item(), logits_kl(logits, torch.logit(teacher)).item()) == (expected,) * 2
    assert hssf_kl(logits, teacher).item() == pytest.approx(bernoulli_kl(3 / 4, 2 / 3) / 2, rel=1e-4)
    two = torch.tensor([[[[math.log(4), 5.0]]]]), torch.tensor([[[[0.9, 0.2]]]])  # the second pixel has no weight
    assert distillation_kl(*two, 2, torch.tensor([[[[0.5, 0.0]]]])).item() == expected
