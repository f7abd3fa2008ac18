"""Is the student good enough? What a run's own scores say to that, in the sentences on top of its report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from samfed_monai.core.words import counted, uncapitalised
from samfed_monai.reports.advice import LOW
from samfed_monai.reports.compare import teacher_alone
from samfed_monai.reports.run_data import RunData
from samfed_monai.reports.style import as_difference, as_score


def verdict(run: RunData) -> str:
    """Test Dice beside the teacher's and the worst site's, and on how many images the model fails; of a run that goes
    on, or that has no test masks, the validation Dice.

    It does not say that a model may be used: how much is enough is for those to say who use it.

    Args:
        run: finished, or going on.
    """
    average = run.results["average"]
    who = "The sites' own models reach" if run.own_models else "The model reaches"
    if run.planned is not None:
        if not average["validation"]["n"]:
            return "The run goes on; no mask says yet how good the model is."
        return f"The run goes on. So far {uncapitalised(who)} {_reached(average['validation'], 'validation')}."
    if average["test"]["n"]:
        return " ".join([f"{who} {_reached(average['test'], 'test')}{_beside(run)}.", *_worst(run), *_failures(run)])
    if average["validation"]["n"]:
        return (
            f"No test image has a mask. {who} {_reached(average['validation'], 'validation')}, which chose the round: "
            "expect less on new images."
        )
    return "No mask says how good the model is: look at the images below, and label a few at one site."


def _reached(summary: Mapping[str, Any], split: str) -> str:
    return f"a Dice of {as_score(summary['dice'])} on {counted(summary['n'], f'{split} image')}"


def _beside(run: RunData) -> str:
    """The teacher's Dice on the same images, after the student's."""
    alone = teacher_alone(run.results)
    if alone is None or alone["average"]["test"]["dice"] is None:
        return ""
    teacher = alone["average"]["test"]["dice"]
    gap = round(run.results["average"]["test"]["dice"], 3) - round(teacher, 3)
    if abs(gap) < 0.0005:
        return f", as much as its teacher ({as_score(teacher)})"
    side = "above" if gap > 0 else "below"
    return f", {as_difference(abs(gap)).lstrip('+')} {side} its teacher ({as_score(teacher)})"


def _worst(run: RunData) -> list[str]:
    worst = run.results["worst"]["test"]
    measured = [site for site, splits in run.results["sites"].items() if splits["test"]["n"]]
    if not worst or len(measured) < 2:
        return []
    return [f"Worst is {worst['site']} with {as_score(worst['dice'])}."]


def _failures(run: RunData) -> list[str]:
    """On how many images most of the two masks is apart, where the run folder has the scores of single images."""
    dices = [row["dice"] for site in run.sites for row in run.image_scores(site)]
    low = sum(dice < LOW for dice in dices)
    missed = run.results["average"]["test"]["empty"]["prediction"]
    nothing = "it draws nothing where there is something to find"
    if low:
        of_them = f", and on {missed} of these {nothing}" if missed else ""
        return [f"On {low} of {len(dices)} images it fails (Dice below {LOW}){of_them}."]
    if missed:
        return [f"On {counted(missed, 'image')} {nothing}."]
    return [f"On no image is its Dice below {LOW}."] if dices else []
