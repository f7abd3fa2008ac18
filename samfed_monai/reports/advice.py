"""What a run's own scores say, in sentences: whether the student is good enough, and what to do where it is not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from samfed_monai.core.words import counted, uncapitalised
from samfed_monai.reports.answer import spread
from samfed_monai.reports.run_data import RunData, teacher_alone
from samfed_monai.reports.style import as_difference, as_score

LOW = 0.5
"""Dice below which more of two masks is apart than together."""
BEHIND = 0.05
"""How far below its teacher a student is taken to have learned too little: at no site of docs/results/light.md is it
farther than 0.03."""
AVERAGE = "on average"
HINTS = (
    "What helps, in this order: public images that look like the sites', a longer fit (--teacher#epochs), a teacher "
    "that each site trains further on its own images (--teacher#self_training#epochs 10)."
)
UNADAPTED = "SAM as it comes was the teacher: --teacher_adapt lora fits it to the public images."


def verdict(run: RunData) -> str:
    """Test Dice beside the teacher's and the worst site's, and on how many images the model fails; of a run without
    test masks, the validation Dice.

    It does not say that a model may be used: how much is enough is for those to say who use it.

    Args:
        run: finished.
    """
    average = run.results["average"]
    who = "The sites' own models reach" if run.own_models else "The model reaches"
    if average["test"]["n"]:
        return " ".join(
            [
                f"{who} {_reached(average['test'], 'test', spread(run))}{_beside(run)}.",
                *_worst_site(run),
                *_failures(run),
            ]
        )
    if average["validation"]["n"]:
        return (
            f"No test image has a mask. {who} {_reached(average['validation'], 'validation')}, which chose the round: "
            "expect less on new images."
        )
    return "No mask says how good the model is: look at the images below, and label a few at one site."


def _reached(summary: Mapping[str, Any], split: str, spread: str = "") -> str:
    between = f" ({spread})" if spread else ""
    return f"a Dice of {as_score(summary['dice'])}{between} on {counted(summary['n'], f'{split} image')}"


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


def _worst_site(run: RunData) -> list[str]:
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


def advice_on(run: RunData) -> list[str]:
    """Sentences on what to do, the most urgent first; none where nothing is out of order."""
    return [*_weak_teacher(run), *_student_behind(run), *_masks_apart(run)]


def _weak_teacher(run: RunData) -> list[str]:
    alone = teacher_alone(run.results)
    dices = {site: splits["test"]["dice"] for site, splits in (alone or {"sites": {}})["sites"].items() if splits}
    low = {site: dice for site, dice in dices.items() if dice is not None and dice < LOW}
    held_out = ((run.results.get("teacher") or {}).get("after") or {}).get("held_out")
    found = []
    if held_out is not None and held_out < LOW:
        found.append(
            f"On public images that it was not fitted on, the teacher's Dice is {as_score(held_out)}: it has not "
            "learned the task. Look whether the public masks belong to their images (the data report of `samfed "
            "prepare` shows them), then fit longer (--teacher#epochs) or on more images."
        )
    if low:
        named = " and ".join(f"{as_score(dice)} at {site}" for site, dice in low.items())
        found.append(
            f"The teacher is wrong more often than right at {len(low)} of {len(dices)} sites (Dice {named}), and "
            f"students learn from its masks. {_hints(run)}"
        )
    return found


def _hints(run: RunData) -> str:
    """What makes a teacher better."""
    return UNADAPTED if (run.results.get("teacher") or {}).get("adapt") == "none" else HINTS


def _student_behind(run: RunData) -> list[str]:
    gaps = _gaps(run)
    far = {name: both for name, both in gaps.items() if both[0] < both[1] - BEHIND}
    named = ", ".join(f"{as_score(student)} and {as_score(teacher)} {name}" for name, (student, teacher) in far.items())
    if far:
        return [
            f"The student stays far behind its teacher (test Dice {named}). It may need more steps (--rounds, "
            "--local_steps), larger images (--image_size) or a larger network (--network_name); one that began with "
            "random numbers learns better from SAM alone (--agreement#rule teacher). The teacher itself is a model, "
            "too: `samfed infer --model` takes its adapter, of the run's cache."
        ]
    student, teacher = gaps.get(AVERAGE, (0.0, 0.0))
    better = f"(Dice {as_score(teacher)}, the student's {as_score(student)})"
    return [
        f"The teacher itself is better than the student on the same test images {better}: where a machine can run SAM, "
        "`samfed infer --model` takes its adapter, of the run's cache."
    ] * (teacher > student)


def _masks_apart(run: RunData) -> list[str]:
    between = {site: sum(dices) / len(dices) for site, dices in run.student_and_teacher().items()}
    named = ", ".join(f"{as_score(dice)} at {site}" for site, dice in between.items() if dice < LOW)
    return [
        f"Student and teacher draw different masks where no mask says who is right (Dice between them {named}): look "
        "at these sites' images in the report before you use either. Where it is the teacher that is wrong: "
        f"{uncapitalised(_hints(run))}"
    ] * bool(named)


def _gaps(run: RunData) -> dict[str, tuple[float, float]]:
    """Test Dice of student and teacher, on average and by site, where both are known."""
    alone = teacher_alone(run.results)
    if alone is None:
        return {}
    tables: dict[str, tuple[Any, Any]] = {AVERAGE: (run.results["average"], alone["average"])}
    tables |= {f"at {site}": (run.results["sites"][site], splits) for site, splits in alone["sites"].items() if splits}
    dices = {name: tuple(one["test"]["dice"] for one in both) for name, both in tables.items()}
    return {name: (student, teacher) for name, (student, teacher) in dices.items() if None not in (student, teacher)}
