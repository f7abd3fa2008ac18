"""Sentences of a report: the verdict, advice and summary of hand-written runs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from samfed_monai.reports import RunData
from samfed_monai.reports.html import advice_on, more_scores, render, run_summary, spread, verdict
from tests.reports.runs import write_disagreement


@pytest.fixture
def even_run(run):
    """That run with 28 images, none of them empty, and a worst site."""
    run.results["average"]["test"] |= {"n": 28, "empty": {"both": 0, "prediction": 0, "label": 0}}
    run.results["worst"]["test"] |= {"site": "Porto", "dice": 0.7}
    return run


@pytest.fixture
def two_sites(run):
    """That run with four images at Porto and none with a mask at Basel."""
    run.results["sites"] = {site: run.results["sites"][site] for site in ("Porto", "Basel")}
    run.results["sites"]["Porto"]["test"] |= {"n": 4}
    run.results["sites"]["Basel"]["test"] |= NO_DICE
    run.results["average"]["test"] |= {"dice": 0.5, "n": 4}
    run.results["models"]["best"]["round"] = 1
    run.results.update({"rounds": 3, "command": "samfed federate samfed_skin --rounds 3"})
    scores(run, 0.2, 0.4, 0.6, 0.8)
    return run


NO_DICE = {"dice": None, "n": 0}


def scores(run: RunData, *dices: float) -> None:
    """Writes Porto's table."""
    folder = run.evaluation("Porto")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "scores.csv").write_text("id,dice,hd95\n" + "".join(f"{i},{dice},1\n" for i, dice in enumerate(dices)))


def set_teacher(run: RunData, **dices: float) -> None:
    for site, dice in dices.items():
        run.results["teacher"]["sites"][site]["test"]["dice"] = dice


def test_verdict_has_dice_teacher_and_worst_site(even_run):
    assert verdict(even_run) == (
        "The model reaches a Dice of 0.800 on 28 test images, 0.020 above its teacher (0.780). "
        "Worst is Porto with 0.700."
    )


@pytest.mark.parametrize(
    ("student", "teacher", "phrase"),
    [
        (0.75, 0.78, "0.030 below its teacher (0.780)"),
        (0.7804, 0.78, "the same as its teacher (0.780)"),
        (0.7806, 0.78, "0.001 above its teacher (0.780)"),
        (0.8004, 0.7796, "a Dice of 0.800 on 28 test images, 0.020 above its teacher (0.780)"),
    ],
)
def test_verdict_gap_matches_displayed_numbers(even_run, student, teacher, phrase):
    even_run.results["average"]["test"]["dice"] = student
    set_teacher(even_run, **dict.fromkeys(even_run.results["sites"], teacher))
    assert phrase in verdict(even_run)


def test_verdict_omits_missing_teacher_and_worst_site(even_run):
    even_run.results["teacher"] = None
    even_run.results["sites"] = {"Porto": even_run.results["sites"]["Porto"]}
    assert verdict(even_run) == "The model reaches a Dice of 0.800 on 28 test images."
    even_run.results["own_models"] = True
    assert verdict(even_run).startswith("The sites' own models reach a Dice of 0.800")


def test_verdict_counts_failed_and_empty_predictions(even_run):
    empty = even_run.results["average"]["test"]["empty"]
    empty["prediction"] = 1
    assert verdict(even_run).endswith("On 1 image it draws nothing where there is something to find.")
    scores(even_run, 0.0, 0.499, 0.5)
    assert "On 2 of 3 images it fails (Dice below 0.5), and on 1 of these it draws nothing where" in verdict(even_run)
    empty["prediction"] = 0
    assert verdict(even_run).endswith("On 2 of 3 images it fails (Dice below 0.5).")
    scores(even_run, 0.5, 0.9)
    assert verdict(even_run).endswith("On no image is its Dice below 0.5.")


def test_verdict_falls_back_to_validation_or_none(even_run):
    average = even_run.results["average"]
    average["test"] |= NO_DICE
    average["validation"] |= {"n": 12, "dice": 0.875}
    words = "The model reaches a Dice of 0.875 on 12 validation images"
    assert verdict(even_run).startswith(f"No test image has a mask. {words},")
    going = replace(even_run, planned=20)
    assert verdict(going) == f"The run is not finished. So far {words[0].lower()}{words[1:]}."
    average["validation"] |= NO_DICE
    assert verdict(going) == "The run is not finished; without masks, the quality of the model is unknown."
    assert verdict(even_run).startswith("Without masks, the quality of the model is unknown")
    held = [{"site": "b", "split": split, "reason": "few"} for split in ("validation", "test")]
    names = ("differential_privacy", "central_differential_privacy", "secure_aggregation", "statistics")
    even_run.results["teacher"] = None
    even_run.results["privacy"] = {"least_images": 5, "withheld": held, **dict.fromkeys(names)}
    assert verdict(even_run).startswith("No site reported a score: b had too few images with masks. Look at the images")
    page = " ".join(render(even_run, [], [], []).split())
    assert "None: b had too few images with masks to report a score" in page
    assert "no site has a mask" not in page


def test_good_run_has_no_advice(run):
    for teacher in (run.results["teacher"], None):
        run.results["teacher"] = teacher
        assert advice_on(run) == []


def test_advice_names_sites_and_remedy_for_weak_teacher(run):
    set_teacher(run, Porto=0.0, Basel=0.4996)
    (text,) = advice_on(run)
    assert "wrong more often than right at 2 of 4 sites (Dice 0.500 at Basel and 0.000 at Porto)" in text
    assert "--masks-from this run" in text
    run.results["teacher"]["adapt"] = "none"
    assert "--teacher_adapt lora" in advice_on(run)[0]
    run.results["teacher"]["model"] = "generation-1"
    assert advice_on(run)[0].endswith("or from SAM (without --masks-from).")
    set_teacher(run, Porto=0.5, Basel=0.5)
    assert advice_on(run) == []


def test_advice_reports_failed_fit_without_site_masks(run):
    run.results["teacher"]["sites"], run.results["teacher"]["after"] = {}, {"held_out": 0.2}
    (text,) = advice_on(run)
    assert text.startswith("On public images that it was not fitted on, the teacher's Dice is 0.200")


@pytest.mark.parametrize(("last", "split", "said"), [(0.85, "test", False), (0.7, "test", True)])
def test_advice_says_that_training_made_the_network_worse(run, last, split, said):
    scores = {"validation": NO_DICE, "test": NO_DICE}
    run.results["models"] = {
        name: {"average": scores | {split: {"dice": dice}}} for name, dice in (("best", 0.9), ("last", last))
    }
    assert ("its Dice fell from 0.900 to 0.700 in the last round" in " ".join(advice_on(run))) is said


@pytest.mark.parametrize(("teacher", "reported"), [(0.84, False), (0.851, True)])
def test_advice_reports_student_far_behind_teacher(run, teacher, reported):
    set_teacher(run, Basel=teacher)
    texts = " ".join(advice_on(run))
    assert ("far behind its teacher (test Dice 0.800 and 0.851 at Basel)" in texts) is reported


def test_advice_suggests_better_teacher(run):
    set_teacher(run, **dict.fromkeys(run.results["sites"], 0.81))
    (text,) = advice_on(run)
    assert "better than the student on the same test images (Dice 0.810, the student's 0.800)" in text
    assert "`samfed infer --model` accepts its adapter" in text


def test_advice_reports_disagreement_without_masks(run):
    write_disagreement(run.folder, "Porto", "a,00,0.2,,", "b,01,0.6,,")
    (text,) = advice_on(run)
    assert "(Dice between them 0.400 at Porto)" in text
    assert "If the teacher is wrong: what helps, in this order: public images" in text
    run.results["teacher"]["adapt"] = "none"
    (text,) = advice_on(run)
    assert "If the teacher is wrong: the teacher was SAM without adaptation: --teacher_adapt lora" in text


def test_answer_has_dice_interval_places_and_next_command(two_sites):
    assert run_summary(two_sites) == [
        "test Dice 0.50 (0.20 to 0.80, 4 images at Porto; Basel has no masks)",
        f"model: {two_sites.folder}, round 2 of 3; report: {two_sites.folder}/report.html",
        f"next: samfed infer samfed_skin IMAGES --model {two_sites.folder} --output-dir MASKS",
    ]
    two_sites.results["own_models"] = True
    assert run_summary(two_sites)[2].endswith(f"--model {two_sites.folder} --site=Porto --output-dir MASKS")


def test_answer_reports_unlabelled_and_withheld_sites(two_sites):
    write_disagreement(two_sites.folder, "Basel", "a,0,0.5,0.8,", "b,1,0.7,0.9,")
    text = "Basel has no masks, student and teacher agree by a Dice of 0.60, expected Dice 0.85 (not"
    assert text in run_summary(two_sites)[0]
    two_sites.results["unscored"] = {"Basel": "no answer within 60 s"}
    assert run_summary(two_sites)[0].endswith("4 images at Porto; Basel sent no score)")
    two_sites.results["privacy"] = {"withheld": [{"site": "Basel", "split": "test", "reason": "withheld"}]}
    assert run_summary(two_sites)[0].endswith("4 images at Porto; Basel withheld its score)")


def test_answer_falls_back_to_validation_or_no_dice(two_sites):
    porto, average = two_sites.results["sites"]["Porto"], two_sites.results["average"]
    porto["test"], average["test"] = NO_DICE, NO_DICE
    average["validation"] |= {"dice": 0.75, "n": 6}
    images = "6 images at Porto, Basel), which chose the round: expect less on new images"
    assert run_summary(two_sites)[0] == f"validation Dice 0.75 ({images}"
    for site in two_sites.results["sites"].values():
        site["validation"] = NO_DICE
    average["validation"] = NO_DICE
    assert run_summary(two_sites)[0] == "no Dice; Porto has no masks; Basel has no masks"


def test_missing_table_gives_no_interval(two_sites):
    two_sites.results["sites"]["Porto"]["test"] |= {"n": 5}
    assert spread(two_sites) == ""


def test_more_scores_are_of_sites_with_test_images(two_sites):
    two_sites.results["sites"]["Porto"]["test"] |= (more := {"sensitivity": 0.9, "precision": 0.8, "area": 0.7})
    assert more_scores(two_sites) == [{"site": "Porto", "spread": "0.20 to 0.80", "dice": 0.8, **more, "n": 4}]
