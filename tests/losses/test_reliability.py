"""Trust in the teacher, and online EM over three raters and six pixels, by hand and in general."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from samfed_monai.losses import (
    RaterRates,
    agree,
    consensus,
    em_step,
    hard_label,
    image_reliability,
    sure_agreement,
    trust_of_images,
)
from samfed_monai.losses.reliability import SiteAgreement, first_statistics, joint


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


# pixel                 0    1    2    3    4    5
TEACHER = image(1.0, 1.0, 0.0, 0.0, 1.0, 0.0)
STUDENT = image(1.0, 1.0, 0.0, 0.0, 0.0, 0.0)
AVERAGE = image(1.0, 1.0, 0.0, 0.0, 0.0, 1.0)
RATERS = (TEACHER, STUDENT, AVERAGE)
# Rates of 0.9 are odds of 9; teacher one vote, the other two half a vote each (odds of 3).
# 0 to 3: all agree, odds 9 * 3 * 3 = 81; 4: 9 / 3 / 3 = 1; 5: 1/9 * 1/3 * 3 = 1/9
TRUTH = (81 / 82, 81 / 82, 1 / 82, 1 / 82, 1 / 2, 1 / 10)


def test_the_posterior_by_hand() -> None:
    found = consensus(RATERS, RaterRates.equal(3, 2))
    assert found[0, 1].flatten().tolist() == pytest.approx(TRUTH)
    assert found.sum(1).flatten().tolist() == pytest.approx([1.0] * 6)


def test_a_step_of_em_by_hand() -> None:
    found = em_step(first_statistics(3, 2), RATERS, step=1.0)
    q = TRUTH
    hits, misses = (q[0] + q[1] + q[4]) / 6, (q[2] + q[3] + q[5]) / 6  # where the teacher says 1, and where 0
    assert found[0, 1].tolist() == pytest.approx([misses, hits])
    assert found[0, 0].tolist() == pytest.approx([3 / 6 - misses, 3 / 6 - hits])
    rates = RaterRates.of(found)
    assert rates.sensitivity(0).item() == pytest.approx(hits / (hits + misses))
    assert rates.specificity(0).item() == pytest.approx((0.5 - misses) / (1 - hits - misses))
    assert rates.prevalence[1].item() == pytest.approx(sum(q) / 6)


def test_a_part_of_a_step_keeps_the_rest_of_what_was_known() -> None:
    first = first_statistics(3, 2)
    whole = em_step(first, RATERS, step=1.0)
    torch.testing.assert_close(em_step(first, RATERS, step=0.25), 0.75 * first + 0.25 * whole)


def test_votes_are_soft() -> None:
    half = torch.full_like(TEACHER, 0.5)
    found = consensus((half, half, half), RaterRates.equal(3, 2))
    assert found.flatten().tolist() == pytest.approx([0.5] * 12)  # who knows nothing says nothing


def test_public_labels_anchor_the_student_alone() -> None:
    public = joint(image(1, 1, 1, 0, 0, 0), image(1, 1, 0, 0, 0, 0))  # it misses one of three
    assert public.flatten().tolist() == pytest.approx([3 / 6, 0, 1 / 6, 2 / 6])
    first = first_statistics(3, 2)
    free, tied = em_step(first, RATERS, step=1.0), em_step(first, RATERS, step=1.0, public=public, anchor=1.0)
    assert torch.equal(free[0], tied[0])
    assert torch.equal(free[2], tied[2])
    assert RaterRates.of(tied).sensitivity(1).item() == pytest.approx(2 / 3)


def test_a_rater_that_errs_loses_its_say() -> None:
    """A blob of which the teacher finds a half everywhere: after some batches the two others overrule it there."""
    truth = torch.zeros(2, 1, 8, 8)
    truth[..., 2:6, 2:6] = 1
    half = truth.clone()
    half[..., 4:6, :] = 0
    sharp = (half.clamp(0.02, 0.98), truth.clamp(0.02, 0.98), truth.clamp(0.02, 0.98))
    statistics = first_statistics(3, 2)
    before = agree(*sharp, rule="reliability", rates=RaterRates.of(statistics))
    public = joint(truth, sharp[1])
    for _ in range(40):
        statistics = em_step(statistics, sharp, public=public)
    rates = RaterRates.of(statistics)
    assert rates.sensitivity(0) < 0.7 < 0.95 < rates.sensitivity(1)
    after = agree(*sharp, rule="reliability", rates=rates)
    missed = (truth - half).bool()
    assert before.weight[missed].max().item() == pytest.approx(0, abs=1e-6)  # one vote against one
    assert bool((after.label[missed] == 1).all())
    assert after.weight[missed].min() > 0.05  # cautious: still one vote against one, by better raters


def test_three_classes() -> None:
    eye = torch.eye(3).T.reshape(1, 3, 1, 3)  # pixel k is class k
    found = consensus((eye, eye), RaterRates.equal(2, 3))
    assert found.argmax(1).flatten().tolist() == [0, 1, 2]
    # odds of right against each wrong class: (0.9 / 0.05)^2 = 324
    assert found[0, 0, 0, 0].item() == pytest.approx(324 / 326)
    assert joint(eye, eye).tolist() == (torch.eye(3) / 3).tolist()


def test_nothing_is_ever_impossible() -> None:
    empty = torch.zeros(1, 1, 4, 4)
    statistics = first_statistics(2, 2)
    for _ in range(300):
        statistics = em_step(statistics, (empty, empty))
    rates = RaterRates.of(statistics)
    assert rates.confusion.min() > 0
    assert rates.prevalence.min() > 0
    assert consensus((empty + 1, empty + 1), rates).isfinite().all()


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


def test_statistics_of_raters_of_whom_nothing_was_seen_sum_to_one() -> None:
    found = first_statistics(2, 3)
    assert found[1].flatten().tolist() == pytest.approx([0.3, 1 / 60, 1 / 60, 1 / 60, 0.3, 1 / 60, 1 / 60, 1 / 60, 0.3])


def test_a_step_moves_by_a_tenth_and_public_labels_count_half_unless_told_otherwise() -> None:
    first, public = first_statistics(3, 2), joint(image(1, 1, 1, 0, 0, 0), image(1, 1, 0, 0, 0, 0))
    found = em_step(first, RATERS, public=public)
    torch.testing.assert_close(found, em_step(first, RATERS, public=public, step=0.1, anchor=0.5))
    plain = em_step(first, RATERS, step=1.0)
    expected = 0.9 * first[1] + 0.1 * (0.5 * plain[1] + 0.5 * public)
    torch.testing.assert_close(found[1], expected)


def test_sensitivity_of_three_classes_weighs_each_class_by_how_often_it_is() -> None:
    confusion = torch.tensor([[[0.8, 0.1, 0.1], [0.2, 0.5, 0.3], [0.4, 0.2, 0.4]]])
    rates = RaterRates(confusion, torch.tensor([0.5, 0.4, 0.1]))
    # foreground named as any foreground: 0.8 of class 1, 0.6 of class 2
    assert rates.sensitivity(0).item() == pytest.approx((0.8 * 0.4 + 0.6 * 0.1) / 0.5)


def test_as_many_raters_as_rates_are_asked_for() -> None:
    with pytest.raises(ValueError, match="shorter"):
        consensus(RATERS, RaterRates.equal(2, 2))


def test_the_prevalence_has_its_own_axis_whatever_the_number_of_images() -> None:
    pair = tuple(torch.cat([rater, rater]) for rater in RATERS)
    rates = RaterRates(RaterRates.equal(3, 2).confusion, torch.tensor([0.75, 0.25]))
    found = consensus(pair, rates)
    torch.testing.assert_close(found[:1], consensus(RATERS, rates))
    # pixel 4: the raters' odds are even, so the prevalence decides
    assert found[1, 1].flatten()[4].item() == pytest.approx(0.25)
