"""Agreement: the reliability of an image, and settings that are refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from samfed_monai.core.errors import Refused
from samfed_monai.losses import AgreementSettings, agree


def image(*values: float) -> Tensor:
    return torch.tensor(values).view(1, 1, 1, -1)


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


def test_settings_are_equal_wherever_they_were_given() -> None:
    assert AgreementSettings(tau=0.8, where="terms#a") == AgreementSettings(tau=0.8, where="terms#b")
    assert len({AgreementSettings(), AgreementSettings(where="terms#b"), AgreementSettings(delta=0.2)}) == 2


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match=r"one shape, found \[\(1, 1, 1, 6\), \(1, 1, 1, 2\)\]"):
        agree(image(*[0.5] * 6), image(0.1, 0.2))
