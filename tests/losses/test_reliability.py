"""Trust in the teacher, by hand and in general."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from samfed_monai.losses import hard_label, image_reliability, sure_agreement, trust_of_images
from samfed_monai.losses.agreement import SiteAgreement


def image(*values: float) -> Tensor:
    return torch.tensor(values).view(1, 1, 1, -1)


def test_only_pixels_that_the_student_is_sure_of_are_compared() -> None:
    # pixel            0  1  2  3  4  5
    teacher = image(1, 1, 1, 0, 1, 0).long()
    student = image(1, 1, 0, 1, 0, 0).long()
    every = torch.ones(1, 1, 1, 6, dtype=torch.bool)
    assert sure_agreement(teacher, student, every)[0].item() == pytest.approx(2 * 2 / (4 + 3))
    sure = image(1, 1, 1, 0, 0, 1).bool()  # of 3 and 4 it is not: 2 in common, the teacher has 3, the student 2
    assert sure_agreement(teacher, student, sure)[0].item() == pytest.approx(2 * 2 / (3 + 2))
    assert sure_agreement(0 * teacher, student, sure)[0].item() == 0


def test_only_images_with_foreground_that_the_student_is_sure_of_say_anything() -> None:
    found, missed, nothing = [1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0]
    student = torch.tensor([found, missed, nothing]).view(3, 1, 1, 4)
    sure = torch.tensor([[1, 0, 1, 1], [1, 1, 1, 1], [0, 0, 1, 1]]).bool().view(3, 1, 1, 4)
    for teacher in (torch.ones_like(student), torch.zeros_like(student)):
        assert sure_agreement(teacher, student, sure)[1].tolist() == [True, False, False]


def test_every_image_and_every_class_has_its_own() -> None:
    teacher = torch.tensor([[1, 2, 2, 0], [0, 0, 0, 0]]).view(2, 1, 1, 4)
    student = torch.tensor([[1, 2, 1, 0], [2, 2, 0, 0]]).view(2, 1, 1, 4)
    sure = torch.ones(2, 1, 1, 4, dtype=torch.bool)
    dice, says = sure_agreement(teacher, student, sure)
    assert dice.tolist() == pytest.approx([2 * 2 / (3 + 3), 0.0])
    assert says.tolist() == [True, True]


@pytest.mark.parametrize(
    ("here", "site", "least", "expected"),
    [
        (0.90, 0.90, 0.7, 1.0),  # both bear it out
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
def test_trust_by_hand(here: float, site: float, least: float, expected: float) -> None:
    found = trust_of_images(torch.tensor([here]), torch.tensor(site), least)
    assert found.tolist() == pytest.approx([expected], abs=1e-6)


def test_the_mean_is_over_all_images_that_say_anything_however_they_came() -> None:
    site = SiteAgreement()
    assert site.add(torch.tensor([0.0, 1.0]), torch.tensor([False, False])).item() == 1  # nothing speaks against it
    assert site.add(torch.tensor([1.0, 0.5, 0.0, 1.0]), torch.tensor([True, True, True, False])).item() == 0.5
    assert site.add(torch.tensor([0.9]), torch.tensor([True])).item() == pytest.approx(2.4 / 4)
    assert site.add(torch.tensor([0.0]), torch.tensor([False])).item() == pytest.approx(2.4 / 4)


def test_the_first_image_that_says_anything_is_the_mean() -> None:
    assert SiteAgreement().add(torch.tensor([0.25]), torch.tensor([True])).item() == 0.25


parts = st.floats(0, 1, width=32)


@given(parts, parts, parts, parts, parts)
def test_trust_grows_with_the_agreement_of_the_image_and_of_the_site(
    one: float, two: float, site_one: float, site_two: float, least: float
) -> None:
    images, sites = torch.tensor(sorted([one, two])), sorted([site_one, site_two])
    less, more = (trust_of_images(images, torch.tensor(site), least) for site in sites)
    assert 0 <= less.min() <= more.max() <= 1
    assert less[0] <= less[1]
    assert bool((less <= more).all())


@given(st.lists(st.booleans(), min_size=6, max_size=6).filter(any), st.floats(0.75, 0.99), st.floats(0.5, 0.74))
def test_a_teacher_of_the_students_opinion_is_trusted_and_one_of_the_opposite_is_not(
    foreground: list[bool], surely: float, maybe: float
) -> None:
    student = torch.where(image(*map(float, foreground)) > 0, surely, 1 - surely)
    (y_c, k_c), (opposite, _) = hard_label(student), hard_label(1 - student)
    same, other = (sure_agreement(y_t, y_c, k_c > maybe) for y_t in (y_c, opposite))
    assert same[1].tolist() == other[1].tolist() == [True]
    assert trust_of_images(same[0], SiteAgreement().add(*same)).item() == 1
    assert trust_of_images(other[0], SiteAgreement().add(*other)).item() == 0


def test_reliability_of_four_pixels_by_both_measures():
    labels = torch.tensor([[[[1, 1, 0, 0]]], [[[0, 0, 0, 1]]], [[[0, 0, 0, 0]]]])
    masks = torch.tensor([[[[0.9, 0.4, 0.6, 0.1]]], [[[0.1, 0.1, 0.1, 0.1]]], [[[0.0, 0.5, 0.2, 0.1]]]])
    # first: one pixel of two found, one too many; second: an empty mask; third: both empty (0.5 is background)
    assert image_reliability(masks, labels).tolist() == [0.5, 0.0, 1.0]
    assert image_reliability(masks, labels, "pixel_accuracy").tolist() == [0.5, 0.75, 1.0]


def test_reliability_of_two_channels_is_that_of_their_argmax():
    chances = torch.tensor([[[[0.8, 0.3]], [[0.2, 0.7]]]])
    assert image_reliability(chances, torch.tensor([[[[0, 1]]]])).tolist() == [1.0]


def test_an_unknown_measure_is_refused():
    with pytest.raises(ValueError, match="iou"):
        image_reliability(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), "iou")
