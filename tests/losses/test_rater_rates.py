"""Online EM over three raters and six pixels, by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from samfed_monai.losses import RaterRates, agree, consensus, em_step
from samfed_monai.losses.reliability import first_statistics, joint


def image(*values: float) -> Tensor:
    return torch.tensor(values).view(1, 1, 1, -1)


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
