"""Agreement and its rules, and the reliability of a teacher with and without labels, by hand."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from samfed_monai.core.errors import Refused
from samfed_monai.losses import (
    AGREEMENT_RULES,
    AgreementSettings,
    agree,
    hard_label,
    image_reliability,
    sure_agreement,
    trust_of_images,
)
from samfed_monai.losses.agreement import SiteAgreement


def image(*values: float) -> Tensor:
    return torch.tensor(values).view(1, 1, 1, -1)


# pixel                 0     1     2     3     4     5
TEACHER = image(0.80, 0.30, 0.95, 0.95, 0.40, 0.96)
STUDENT = image(0.90, 0.10, 0.30, 0.08, 0.95, 0.20)
TRUTH_TABLE = {
    # 0: both 1            1: both 0            2: teacher sure (0.95 against 0.70)
    # 3: 0.95 against 0.92, not surer by 0.1    4: student sure (0.95 against 0.60)    5: teacher (0.96 against 0.80)
    "confidence": ([1, 0, 1, 1, 1, 1], [0.85, 0.80, 0.95, 0.0, 0.95, 0.96]),
    "average": ([1, 0, 1, 1, 1, 1], [0.85, 0.80, 0.625, 0.515, 0.675, 0.58]),
    "trusted_average": ([1, 0, 1, 1, 1, 1], [0.85, 0.80, 0.625, 0.515, 0.675, 0.58]),  # fully trusted
    "teacher": ([1, 0, 1, 1, 0, 1], [1.0] * 6),
    "label": ([1, 0, 1, 1, 0, 1], [1.0] * 6),
    "student": ([1, 0, 0, 0, 1, 0], [0.0, 0.0, 0.0, 1.0, 1.0, 0.0]),  # 0.90 is not above tau = 0.9
}


@pytest.mark.parametrize("rule", sorted(AGREEMENT_RULES))
def test_rules_match_truth_table(rule: str) -> None:
    label, weight = TRUTH_TABLE[rule]
    found = agree(TEACHER, STUDENT, rule=rule)
    assert found.label.flatten().tolist() == label
    assert found.weight.flatten().tolist() == pytest.approx(weight)
    assert found.agreed.flatten().tolist() == [True, True, False, False, False, False]


def test_trust_reduces_weight_of_teacher() -> None:
    found = agree(TEACHER, STUDENT, rule="trusted_average", trust=torch.tensor([0.25]))
    # (0.25 p_T + p_c) / 1.25
    assert found.soft_label.flatten().tolist() == pytest.approx([0.88, 0.14, 0.43, 0.254, 0.84, 0.352])
    assert found.label.flatten().tolist() == [1, 0, 0, 0, 1, 0]
    assert found.weight.flatten().tolist() == pytest.approx([0.88, 0.86, 0.57, 0.746, 0.84, 0.648])
    assert found.distillation_weight.flatten().tolist() == pytest.approx([0.88, 0.86, 0.0, 0.0, 0.0, 0.0])
    assert found.trust.tolist() == [0.25]  # by which the distillation is scaled
    fully = agree(TEACHER, STUDENT, rule="trusted_average", trust=torch.ones(1))
    assert torch.equal(fully.soft_label, agree(TEACHER, STUDENT, rule="average").soft_label)


@pytest.mark.parametrize(
    ("teacher", "student", "tau", "delta", "weight"),
    [
        (0.91, 0.45, 0.9, 0.1, 0.91),  # sure and surer
        (0.90, 0.45, 0.9, 0.1, 0.0),  # not above tau
        (0.91, 0.15, 0.9, 0.1, 0.0),  # 0.91 against 0.85
        (0.91, 0.15, 0.9, 0.05, 0.91),  # a smaller delta lets it through
        (0.70, 0.45, 0.6, 0.1, 0.70),  # a smaller tau too
        (0.93, 0.07, 0.9, 0.0, 0.0),  # a tie decides nothing
    ],
)
def test_confidence_rule_needs_both_thresholds(teacher, student, tau, delta, weight) -> None:
    found = agree(image(teacher), image(student), tau=tau, delta=delta, rule="confidence")
    assert found.weight.item() == pytest.approx(weight, abs=1e-6)


def maps() -> st.SearchStrategy[Tensor]:
    pixel = st.floats(0, 1, width=32)
    return st.lists(pixel, min_size=12, max_size=12).map(lambda values: torch.tensor(values).view(2, 1, 2, 3))


@given(maps(), maps(), st.sampled_from(sorted(AGREEMENT_RULES)), st.floats(0.5, 1), st.floats(0, 0.5))
def test_weights_and_reliability_are_in_0_1(t: Tensor, s: Tensor, rule: str, tau: float, delta: float) -> None:
    found = agree(t, s, s, rule=rule, tau=tau, delta=delta)
    for values in (found.weight, found.reliability):
        assert 0 <= values.min().item() <= values.max().item() <= 1
    assert set(found.label.unique().tolist()) <= {0, 1}
    follows = found.label == hard_label(t)[0]
    assert torch.equal(found.distillation_weight, torch.where(follows, found.weight, torch.zeros_like(found.weight)))


def test_reliability_matches_hand_calculation() -> None:
    teacher = torch.stack([image(0.9, 0.9, 0.1, 0.1)[0], image(0.9, 0.9, 0.9, 0.9)[0]])
    student = torch.stack([image(0.9, 0.1, 0.9, 0.1)[0], image(0.9, 0.9, 0.9, 0.1)[0]])
    ema = torch.stack([image(0.9, 0.1, 0.1, 0.1)[0], image(0.9, 0.9, 0.9, 0.1)[0]])
    # image 0: Dice(T, c) = 2 1 / (2 + 2) = 1/2, Dice(c, ema) = 2 1 / (2 + 1) = 2/3; image 1: 6/7 and 1
    assert agree(teacher, student, ema).reliability.tolist() == pytest.approx([1 / 3, 6 / 7])
    assert agree(teacher, student).reliability.tolist() == pytest.approx([1 / 2, 6 / 7])


def test_agreement_of_three_classes_matches_hand_calculation() -> None:
    teacher = torch.tensor([[0.1, 0.7], [0.2, 0.2], [0.7, 0.1]]).view(1, 3, 1, 2)  # classes 2 and 0
    student = torch.tensor([[0.1, 0.02], [0.3, 0.96], [0.6, 0.02]]).view(1, 3, 1, 2)  # classes 2 and 1
    found = agree(teacher, student, rule="confidence")
    assert found.label.flatten().tolist() == [2, 1]
    assert found.weight.flatten().tolist() == pytest.approx([0.65, 0.96])
    assert found.reliability.tolist() == pytest.approx([2 / 3])  # one common pixel of 1 + 2
    default = agree(teacher, student)
    assert default.label.flatten().tolist() == [2, 0]
    assert default.weight.flatten().tolist() == [1, 1]
    assert torch.equal(default.reliability, found.reliability)


def test_fault_25_unknown_rule_is_refused_with_suggestion() -> None:
    with pytest.raises(Refused, match=r"agreement rule: expected .* found 'confidance'; did you mean 'confidence'"):
        agree(image(0.8), image(0.9), rule="confidance")
    with pytest.raises(ValueError, match=r"one shape, found \[\(1, 1, 1, 6\), \(1, 1, 1, 2\)\]"):
        agree(image(*[0.5] * 6), image(0.1, 0.2))


def test_invalid_settings_are_reported_together() -> None:
    rule = r"(?s)3 problems.*terms#x#rule: .*did you mean 'average'.*"
    numbers = r"terms#x#tau: expected a number in \[0, 1\], found 1\.5.*terms#x#delta: .* -1"
    with pytest.raises(Refused, match=rule + numbers):
        AgreementSettings(rule="avrage", tau=1.5, delta=-1, where="terms#x")


READ = {"confidence": {"tau", "delta"}, "trusted_average": {"tau", "least_agreement"}, "student": {"tau"}}


@pytest.mark.parametrize(("name", "default"), [("tau", 0.9), ("delta", 0.1), ("least_agreement", 0.7)])
def test_thresholds_accept_0_and_1_and_are_refused_if_unread(name, default) -> None:
    for rule, value in product(AGREEMENT_RULES, (0, 1)):
        assert getattr(AgreementSettings(rule=rule, **{name: default}), name) == default
        if name in READ.get(rule, ()):
            assert getattr(AgreementSettings(rule=rule, **{name: value}), name) == value
            continue
        expected = f"agreement#{name}: expected {default}, as the rule {rule} does not use it, found {value}; remove it"
        readers = " or ".join(rule for rule in READ if name in READ[rule])
        with pytest.raises(Refused, match=f"{expected}, or set rule to {readers}"):
            AgreementSettings(rule=rule, **{name: value})


def test_equality_of_settings_ignores_origin() -> None:
    one, other = (AgreementSettings(rule="student", tau=0.8, where=where) for where in ("terms#a", "terms#b"))
    assert one == other
    assert len({AgreementSettings(), AgreementSettings(where="terms#b"), one}) == 2


def test_sure_agreement_compares_only_confident_pixels() -> None:
    # pixel            0  1  2  3  4  5
    teacher = image(1, 1, 1, 0, 1, 0).long()
    student = image(1, 1, 0, 1, 0, 0).long()
    every = torch.ones(1, 1, 1, 6, dtype=torch.bool)
    assert sure_agreement(teacher, student, every)[0].item() == pytest.approx(2 * 2 / (4 + 3))
    sure = image(1, 1, 1, 0, 0, 1).bool()  # of 3 and 4 it is not: 2 in common, the teacher has 3, the student 2
    assert sure_agreement(teacher, student, sure)[0].item() == pytest.approx(2 * 2 / (3 + 2))
    assert sure_agreement(0 * teacher, student, sure)[0].item() == 0


def test_sure_agreement_needs_confident_foreground() -> None:
    found, missed, nothing = [1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0]
    student = torch.tensor([found, missed, nothing]).view(3, 1, 1, 4)
    sure = torch.tensor([[1, 0, 1, 1], [1, 1, 1, 1], [0, 0, 1, 1]]).bool().view(3, 1, 1, 4)
    for teacher in (torch.ones_like(student), torch.zeros_like(student)):
        assert sure_agreement(teacher, student, sure)[1].tolist() == [True, False, False]


def test_sure_agreement_is_per_image_over_classes() -> None:
    teacher = torch.tensor([[1, 2, 2, 0], [0, 0, 0, 0]]).view(2, 1, 1, 4)
    student = torch.tensor([[1, 2, 1, 0], [2, 2, 0, 0]]).view(2, 1, 1, 4)
    dice, valid = sure_agreement(teacher, student, torch.ones(2, 1, 1, 4, dtype=torch.bool))
    assert dice.tolist() == pytest.approx([2 * 2 / (3 + 3), 0.0])
    assert valid.tolist() == [True, True]


@pytest.mark.parametrize(
    ("here", "site", "least", "expected"),
    [
        (0.90, 0.90, 0.7, 1.0),  # both agree
        (0.70, 0.70, 0.7, 0.5),  # the same say
        (0.60, 0.90, 0.7, 0.75),  # s = 0.75, a quarter of the way from 0.7 to 0.9
        (0.20, 0.90, 0.7, 0.0),  # a plain contradiction at a good site: s = 0.55
        (1.00, 0.30, 0.7, 0.25),  # one image does not make a bad site good: s = 0.65
        (0.30, 0.30, 0.7, 0.0),
        (0.60, 0.90, 0.8, 0.25),  # a higher bar
        (0.10, 0.00, 0.0, 0.75),  # least 0 never gives the student the larger say
        (1.00, 1.00, 1.0, 0.5),  # least 1 never gives it to the teacher
    ],
)
def test_trust_matches_hand_calculation(here: float, site: float, least: float, expected: float) -> None:
    found = trust_of_images(torch.tensor([here]), torch.tensor(site), least)
    assert found.tolist() == pytest.approx([expected], abs=1e-6)


def test_site_agreement_is_mean_over_valid_images() -> None:
    site = SiteAgreement()
    assert site.add(torch.tensor([0.0, 1.0]), torch.tensor([False, False])).item() == 1  # nothing speaks against it
    assert site.add(torch.tensor([1.0, 0.5, 0.0, 1.0]), torch.tensor([True, True, True, False])).item() == 0.5
    assert site.add(torch.tensor([0.9]), torch.tensor([True])).item() == pytest.approx(2.4 / 4)
    assert site.add(torch.tensor([0.0]), torch.tensor([False])).item() == pytest.approx(2.4 / 4)
    assert SiteAgreement().add(torch.tensor([0.25]), torch.tensor([True])).item() == 0.25


def test_image_reliability_matches_hand_calculation():
    labels = torch.tensor([[[[1, 1, 0, 0]]], [[[0, 0, 0, 1]]], [[[0, 0, 0, 0]]]])
    masks = torch.tensor([[[[0.9, 0.4, 0.6, 0.1]]], [[[0.1, 0.1, 0.1, 0.1]]], [[[0.0, 0.5, 0.2, 0.1]]]])
    # first: one pixel of two found, one too many; second: an empty mask; third: both empty (0.5 is background)
    assert image_reliability(masks, labels).tolist() == [0.5, 0.0, 1.0]
    assert image_reliability(masks, labels, "pixel_accuracy").tolist() == [0.5, 0.75, 1.0]
    two_channels = torch.tensor([[[[0.8, 0.3]], [[0.2, 0.7]]]])
    assert image_reliability(two_channels, torch.tensor([[[[0, 1]]]])).tolist() == [1.0]
    assert image_reliability(two_channels, torch.tensor([[[[1, 0]], [[0, 1]]]])).tolist() == [1.0], "as planes"
    planes = torch.eye(3)[[0, 1, 2, 2]].T.reshape(1, 3, 1, 4)  # the background, class 1, class 2 twice
    masks = torch.cat([planes, planes[:, [0, 2, 1]], torch.eye(3)[1].view(1, 3, 1, 1).expand(1, 3, 1, 4)])
    labels = planes.byte().expand(3, -1, -1, -1)  # the mask itself, the classes swapped, class 1 everywhere
    assert image_reliability(masks, labels).tolist() == [1.0, 0.0, pytest.approx(2 / 7)]
    assert image_reliability(masks, labels, "pixel_accuracy").tolist() == [1.0, 0.25, 0.25]
    with pytest.raises(ValueError, match="iou"):
        image_reliability(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), "iou")
