"""The sentences on top of a report, in hand-written runs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from samfed_monai.reports import RunData
from samfed_monai.reports.html import render, verdict


@pytest.fixture
def run(run):
    """The even run with 28 images, none of them empty, and a worst site."""
    run.results["average"]["test"] |= {"n": 28, "empty": {"both": 0, "prediction": 0, "label": 0}}
    run.results["worst"]["test"] |= {"site": "Porto", "dice": 0.7}
    return run


def scores(run: RunData, *dices: float) -> None:
    folder = run.evaluation("Porto")
    folder.mkdir(parents=True)
    (folder / "scores.csv").write_text("id,dice,hd95\n" + "".join(f"{i},{dice},1\n" for i, dice in enumerate(dices)))


def test_it_says_dice_teacher_and_worst_site(run):
    assert verdict(run) == (
        "The model reaches a Dice of 0.800 on 28 test images, 0.020 above its teacher (0.780). "
        "Worst is Porto with 0.700."
    )


@pytest.mark.parametrize(
    ("student", "told"),
    [
        (0.75, "0.030 below its teacher (0.780)"),
        (0.7804, "as much as its teacher (0.780)"),
        (0.7806, "0.001 above its teacher (0.780)"),
    ],
)
def test_the_gap_is_that_of_the_numbers_as_they_are_shown(run, student, told):
    run.results["average"]["test"]["dice"] = student
    assert told in verdict(run)


def test_the_gap_of_two_rounded_numbers_adds_up(run):
    run.results["average"]["test"]["dice"] = 0.8004
    for site in run.results["sites"]:
        run.results["teacher"]["sites"][site]["test"]["dice"] = 0.7796
    assert "a Dice of 0.800 on 28 test images, 0.020 above its teacher (0.780)" in verdict(run)


def test_without_a_teacher_or_a_second_site_nothing_is_compared(run):
    run.results["teacher"] = None
    run.results["sites"] = {"Porto": run.results["sites"]["Porto"]}
    assert verdict(run) == "The model reaches a Dice of 0.800 on 28 test images."
    run.results["own_models"] = True
    assert verdict(run).startswith("The sites' own models reach a Dice of 0.800")


def test_images_below_one_half_are_counted_and_those_with_an_empty_prediction_among_them(run):
    run.results["average"]["test"]["empty"]["prediction"] = 1
    assert verdict(run).endswith("On 1 image it draws nothing where there is something to find.")
    scores(run, 0.0, 0.499, 0.5)
    run = replace(run)  # read anew
    assert "On 2 of 3 images it fails (Dice below 0.5), and on 1 of these it draws nothing where" in verdict(
        replace(run)
    )
    run.results["average"]["test"]["empty"]["prediction"] = 0
    assert verdict(run).endswith("On 2 of 3 images it fails (Dice below 0.5).")


def test_that_no_image_fails_is_said_too(run):
    scores(run, 0.5, 0.9)
    assert verdict(run).endswith("On no image is its Dice below 0.5.")


def test_without_test_masks_it_falls_back_to_validation_and_to_nothing(run):
    run.results["average"]["test"] |= {"n": 0, "dice": None}
    run.results["average"]["validation"] |= {"n": 12, "dice": 0.875}
    assert verdict(run).startswith(
        "No test image has a mask. The model reaches a Dice of 0.875 on 12 validation images,"
    )
    run.results["average"]["validation"] |= {"n": 0, "dice": None}
    assert verdict(run).startswith("No mask says how good the model is")
    held = [{"site": "b", "split": split, "reason": "few"} for split in ("validation", "test")]
    names = ("differential_privacy", "central_differential_privacy", "secure_aggregation", "statistics")
    run.results["teacher"] = None
    run.results["privacy"] = {"least_images": 5, "withheld": held, **dict.fromkeys(names)}
    assert verdict(run).startswith("No site reported a score: b had too few images with masks. Look at the images")
    page = " ".join(render(run, [], [], []).split())
    assert "None: b had too few images with masks to report a score" in page
    assert "no site has a mask" not in page


def test_a_run_that_goes_on_has_its_validation_so_far(run):
    run.results["average"]["validation"] |= {"n": 12, "dice": 0.875}
    going = replace(run, planned=20)
    assert verdict(going) == "The run goes on. So far the model reaches a Dice of 0.875 on 12 validation images."
    run.results["average"]["validation"] |= {"n": 0, "dice": None}
    assert verdict(going) == "The run goes on; no mask says yet how good the model is."
