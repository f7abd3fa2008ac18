"""What a run's numbers ask for, in words."""

from __future__ import annotations

import pytest

from samfed_monai.reports import RunData
from samfed_monai.reports.html import advice_on


def set_teacher(run: RunData, **dices: float) -> None:
    for site, dice in dices.items():
        run.results["teacher"]["sites"][site]["test"]["dice"] = dice


def test_nothing_is_said_where_nothing_is_out_of_order(run):
    assert advice_on(run) == []
    run.results["teacher"] = None
    assert advice_on(run) == []


def test_a_teacher_below_one_half_is_told_with_its_sites_and_what_helps(run):
    set_teacher(run, Porto=0.0, Basel=0.4996)
    (text,) = advice_on(run)
    assert "wrong more often than right at 2 of 4 sites (Dice 0.500 at Basel and 0.000 at Porto)" in text
    assert "--masks-from this run" in text
    run.results["teacher"]["adapt"] = "none"
    assert "--teacher_adapt lora" in advice_on(run)[0]
    run.results["teacher"]["model"] = "generation-1"
    assert advice_on(run)[0].endswith("or with SAM (no --masks-from).")
    set_teacher(run, Porto=0.5, Basel=0.5)
    assert advice_on(run) == []


def test_a_fit_that_failed_is_told_where_no_site_has_a_mask(run):
    run.results["teacher"]["sites"], run.results["teacher"]["after"] = {}, {"held_out": 0.2}
    (text,) = advice_on(run)
    assert text.startswith("On public images that it was not fitted on, the teacher's Dice is 0.200")


@pytest.mark.parametrize(("teacher", "told_so"), [(0.84, False), (0.851, True)])
def test_a_student_more_than_0_05_behind_is_told(run, teacher, told_so):
    set_teacher(run, Basel=teacher)
    texts = " ".join(advice_on(run))
    assert ("far behind its teacher (test Dice 0.800 and 0.851 at Basel)" in texts) is told_so


def test_a_better_teacher_can_be_run(run):
    set_teacher(run, **dict.fromkeys(run.results["sites"], 0.81))
    (text,) = advice_on(run)
    assert "better than the student on the same test images (Dice 0.810, the student's 0.800)" in text
    assert "`samfed infer --model` takes its adapter" in text


def test_masks_far_apart_where_nobody_knows_are_advice_on(run):
    own = run.folder / "evaluation" / "best" / "Porto" / "unlabelled"
    own.mkdir(parents=True)
    (own / "disagreement.csv").write_text("id,image_sha256,dice,mask\na,00,0.2,\nb,01,0.6,\n")
    (text,) = advice_on(run)
    assert "(Dice between them 0.400 at Porto)" in text
    assert "Where it is the teacher that is wrong: what helps, in this order: public images" in text
    run.results["teacher"]["adapt"] = "none"
    (text,) = advice_on(run)
    assert "Where it is the teacher that is wrong: SAM as it comes was the teacher: --teacher_adapt lora" in text
