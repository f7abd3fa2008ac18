"""Agreement: the rules as truth tables over six pixels, the reliability of an image, and settings that are refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from samfed_monai.core.errors import Refused
from samfed_monai.losses import AGREEMENT_RULES, AgreementSettings, agree, hard_label


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


@pytest.mark.parametrize("rule", sorted(TRUTH_TABLE))
def test_truth_table(rule: str) -> None:
    label, weight = TRUTH_TABLE[rule]
    found = agree(TEACHER, STUDENT, rule=rule)
    assert found.label.flatten().tolist() == label
    assert found.weight.flatten().tolist() == pytest.approx(weight)
    assert found.agreed.flatten().tolist() == [True, True, False, False, False, False]


# weight of the distillation: that of the label where the label is the teacher's (1, 0, 1, 1, 0, 1), otherwise 0
DISTILLED = {
    "confidence": [0.85, 0.80, 0.95, 0.0, 0.0, 0.96],  # 4: the student overruled the teacher
    "average": [0.85, 0.80, 0.625, 0.515, 0.0, 0.58],
    "trusted_average": [0.85, 0.80, 0.625, 0.515, 0.0, 0.58],
    "teacher": [1.0] * 6,
    "label": [1.0] * 6,
    "student": [0.0] * 6,  # where it is sure (3 and 4) it is of another opinion
}


@pytest.mark.parametrize("rule", sorted(DISTILLED))
def test_where_the_student_overruled_the_teacher_nothing_is_distilled(rule: str) -> None:
    found = agree(TEACHER, STUDENT, rule=rule)
    assert found.distillation_weight.flatten().tolist() == pytest.approx(DISTILLED[rule])


def test_a_distrusted_teacher_has_less_of_the_average() -> None:
    found = agree(TEACHER, STUDENT, rule="trusted_average", trust=torch.tensor([0.25]))
    # (0.25 p_T + p_c) / 1.25
    assert found.soft_label.flatten().tolist() == pytest.approx([0.88, 0.14, 0.43, 0.254, 0.84, 0.352])
    assert found.label.flatten().tolist() == [1, 0, 0, 0, 1, 0]
    assert found.weight.flatten().tolist() == pytest.approx([0.88, 0.86, 0.57, 0.746, 0.84, 0.648])
    assert found.distillation_weight.flatten().tolist() == pytest.approx([0.88, 0.86, 0.0, 0.0, 0.0, 0.0])


def test_every_rule_has_a_truth_table() -> None:
    assert sorted(AGREEMENT_RULES) == sorted(TRUTH_TABLE) == sorted(DISTILLED)


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
def test_both_thresholds_are_needed_where_they_disagree(
    teacher: float, student: float, tau: float, delta: float, weight: float
) -> None:
    found = agree(image(teacher), image(student), tau=tau, delta=delta, rule="confidence")
    assert found.weight.item() == pytest.approx(weight, abs=1e-6)


def maps() -> st.SearchStrategy[Tensor]:
    pixel = st.floats(0, 1, width=32)
    return st.lists(pixel, min_size=12, max_size=12).map(lambda values: torch.tensor(values).view(2, 1, 2, 3))


@given(maps(), maps(), st.sampled_from(sorted(AGREEMENT_RULES)), st.floats(0.5, 1), st.floats(0, 0.5))
def test_weights_and_reliability_stay_in_0_1(t: Tensor, s: Tensor, rule: str, tau: float, delta: float) -> None:
    found = agree(t, s, s, rule=rule, tau=tau, delta=delta)
    for values in (found.weight, found.reliability):
        assert 0 <= values.min().item() <= values.max().item() <= 1
    assert set(found.label.unique().tolist()) <= {0, 1}
    follows = found.label == hard_label(t)[0]
    assert torch.equal(found.distillation_weight, torch.where(follows, found.weight, torch.zeros_like(found.weight)))


@given(maps(), maps(), st.sampled_from(sorted(AGREEMENT_RULES)), st.permutations(range(6)))
def test_a_rule_does_not_care_where_a_pixel_lies(t: Tensor, s: Tensor, rule: str, order: list[int]) -> None:
    def shuffle(values: Tensor) -> Tensor:
        return values.flatten(2)[..., order].view_as(values)

    plain, shuffled = agree(t, s, rule=rule), agree(shuffle(t), shuffle(s), rule=rule)
    assert torch.equal(shuffle(plain.label), shuffled.label)
    assert torch.equal(shuffle(plain.weight), shuffled.weight)
    assert torch.equal(plain.reliability, shuffled.reliability)


@given(maps())
@settings(max_examples=50)
def test_a_teacher_that_equals_the_student_is_believed_as_much_as_it_believes_itself(t: Tensor) -> None:
    label, confidence = hard_label(t)
    found = agree(t, t, t, rule="confidence")
    assert torch.equal(found.label, label)
    assert torch.equal(found.weight, confidence)
    assert found.reliability.tolist() == [1.0, 1.0]


@given(maps(), maps())
def test_full_trust_is_the_average_and_none_the_students_own_probabilities(t: Tensor, s: Tensor) -> None:
    full, none = (agree(t, s, rule="trusted_average", trust=torch.full((2,), trust)) for trust in (1.0, 0.0))
    average = agree(t, s, rule="average")
    assert torch.equal(full.soft_label, average.soft_label)
    assert torch.equal(full.label, average.label)
    assert torch.equal(full.weight, average.weight)
    assert torch.equal(none.soft_label, s)
    assert none.trust.tolist() == [0.0, 0.0]  # by which the distillation is scaled


def test_reliability_by_hand() -> None:
    teacher = torch.stack([image(0.9, 0.9, 0.1, 0.1)[0], image(0.9, 0.9, 0.9, 0.9)[0]])
    student = torch.stack([image(0.9, 0.1, 0.9, 0.1)[0], image(0.9, 0.9, 0.9, 0.1)[0]])
    ema = torch.stack([image(0.9, 0.1, 0.1, 0.1)[0], image(0.9, 0.9, 0.9, 0.1)[0]])
    # image 0: Dice(T, c) = 2 1 / (2 + 2) = 1/2, Dice(c, ema) = 2 1 / (2 + 1) = 2/3; image 1: 6/7 and 1
    assert agree(teacher, student, ema).reliability.tolist() == pytest.approx([1 / 3, 6 / 7])
    assert agree(teacher, student).reliability.tolist() == pytest.approx([1 / 2, 6 / 7])


def test_three_classes() -> None:
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


def test_fault_25_unknown_rule_is_refused_with_a_suggestion() -> None:
    with pytest.raises(
        Refused, match=r"agreement rule: expected one of .* found 'confidance'; did you mean 'confidence'"
    ):
        agree(image(0.8), image(0.9), rule="confidance")


def test_settings_are_refused_with_all_that_is_wrong() -> None:
    with pytest.raises(
        Refused,
        match=r"(?s)3 problems.*terms#x#rule: .*did you mean 'average'.*terms#x#tau: .* 1\.5.*terms#x#delta: .* -1",
    ):
        AgreementSettings(rule="avrage", tau=1.5, delta=-1, where="terms#x")


def test_thresholds_of_0_and_1_are_thresholds() -> None:
    assert [AgreementSettings(tau=tau, delta=1 - tau).tau for tau in (0, 1)] == [0, 1]
    with pytest.raises(Refused, match=r"tau: expected a number in \[0, 1\], found 1.5"):
        AgreementSettings(tau=1.5)


def test_settings_are_equal_wherever_they_were_given() -> None:
    assert AgreementSettings(tau=0.8, where="terms#a") == AgreementSettings(tau=0.8, where="terms#b")
    assert len({AgreementSettings(), AgreementSettings(where="terms#b"), AgreementSettings(delta=0.2)}) == 2


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match=r"one shape, found \[\(1, 1, 1, 6\), \(1, 1, 1, 2\)\]"):
        agree(image(*[0.5] * 6), image(0.1, 0.2))
