"""What a run ends with: how good it is, where everything is, what to type next."""

from __future__ import annotations

import logging

import pytest

from samfed_monai.reports import Report, RunData
from samfed_monai.reports.html import answer, more_scores, spread
from samfed_monai.reports.rows import interval


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], None),
        ([0.5], None),
        ([0.2, 0.4], (0.2, 0.4)),  # of two, Student's t leaves their whole range
        ([0.5, 0.5, 0.5], (0.5, 0.5)),
        ([0.2, 0.4, 0.6, 0.8], (0.2, 0.8)),
    ],
)
def test_the_interval_of_few_images_is_wide(values, expected):
    assert interval(values) == (expected if expected is None else pytest.approx(expected))


def test_the_interval_of_many_images_is_that_of_a_mean():
    low, high = interval([0.0, 1.0] * 50)  # standard error 0.05, of 100 images
    assert (low, high) == pytest.approx((0.5 - 1.98 * 0.0502, 0.5 + 1.98 * 0.0502), abs=0.011)


def scores(run: RunData, site: str, *dices: float, split: str = "test") -> None:
    folder = run.evaluation(site, split=split)
    folder.mkdir(parents=True, exist_ok=True)
    text = "id,dice,hd95\n" + "".join(f"{i},{dice},1\n" for i, dice in enumerate(dices))
    (folder / "scores.csv").write_text(text)


def without(run: RunData, *sites: str, split: str = "test") -> None:
    for site in sites:
        run.results["sites"][site][split] |= {"dice": None, "n": 0}


@pytest.fixture
def two(run):
    """The even run with four images at Porto and none with a mask at Basel."""
    run.results["sites"] = {site: run.results["sites"][site] for site in ("Porto", "Basel")}
    run.results["sites"]["Porto"]["test"] |= {"n": 4}
    without(run, "Basel")
    run.results["average"]["test"] |= {"dice": 0.5, "n": 4}
    run.results["models"]["best"]["round"] = 1
    run.results.update({"rounds": 3, "command": "samfed federate samfed_skin --rounds 3"})
    scores(run, "Porto", 0.2, 0.4, 0.6, 0.8)
    return run


def test_it_says_dice_with_its_interval_places_and_the_next_command(two):
    assert answer(two) == [
        "test Dice 0.50 (0.20 to 0.80, 4 images at Porto; Basel has no masks)",
        f"model: {two.folder}, round 2 of 3; report: {two.folder}/report.html",
        f"next: samfed infer samfed_skin IMAGES --model {two.folder} --output-dir MASKS",
    ]


def test_models_of_sites_are_used_with_the_site_s_name(two):
    two.results["own_models"] = True
    assert answer(two)[2].endswith(f"--model {two.folder} --site Porto --output-dir MASKS")


def test_a_site_without_masks_says_how_far_student_and_teacher_agree_and_a_withheld_score_is_one(two):
    folder = two.own_images("Basel")
    folder.mkdir(parents=True)
    (folder / "disagreement.csv").write_text("id,image_sha256,dice,estimate,mask\na,0,0.5,0.8,\nb,1,0.7,0.9,\n")
    assert "; Basel has no masks, student and teacher agree by a Dice of 0.60, expected Dice 0.85)" in answer(two)[0]
    two.results["privacy"] = {"withheld": [{"site": "Basel", "split": "test", "reason": "withheld"}]}
    assert answer(two)[0].endswith("4 images at Porto; Basel withheld its score)")


def test_without_test_masks_it_is_the_validation_that_chose_the_round_and_without_any_none(two):
    without(two, "Porto")
    two.results["average"]["test"] |= {"dice": None, "n": 0}
    assert answer(two)[0] == (
        f"validation Dice {two.results['average']['validation']['dice']:.2f} "
        f"({two.results['average']['validation']['n']} images at Porto, Basel), which chose the round: expect less on "
        "new images"
    )
    without(two, "Porto", "Basel", split="validation")
    two.results["average"]["validation"] |= {"dice": None, "n": 0}
    assert answer(two)[0] == "no Dice; Porto has no masks; Basel has no masks"


def test_a_table_that_is_not_here_gives_no_interval(two):
    two.results["sites"]["Porto"]["test"] |= {"n": 5}
    assert spread(two) == ""


def test_more_scores_are_those_of_sites_with_test_images(two):
    two.results["sites"]["Porto"]["test"] |= {"sensitivity": 0.9, "precision": 0.8, "area": 0.7}
    dice = two.results["sites"]["Porto"]["test"]["dice"]
    expected = {"dice": dice, "sensitivity": 0.9, "precision": 0.8, "area": 0.7, "n": 4}
    assert more_scores(two) == [{"site": "Porto", "spread": "0.20 to 0.80", **expected}]


def test_the_report_ends_with_it(run_folder, caplog):
    with caplog.at_level(logging.INFO, "samfed_monai"):
        Report(run_folder, overlays=False).write()
    last = caplog.messages[-3:]
    assert last[0].startswith("test Dice 0.")
    assert last[2].startswith("next: samfed infer bundles/samfed_skin IMAGES --model ")
