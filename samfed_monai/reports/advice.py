"""What a run's own scores say, in sentences: whether the student is good enough, and what to do where it is not."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samfed_monai.config.bundles import bundle_of_command
from samfed_monai.config.targets import CATALOGUE
from samfed_monai.core.words import counted, uncapitalised
from samfed_monai.reports.answer import spread
from samfed_monai.reports.run_data import RunData, series, teacher_alone
from samfed_monai.reports.style import as_difference, as_score

LOW = 0.5
"""Dice below which more of two masks is apart than together."""
BEHIND = 0.05
"""How far below its teacher a student is taken to have learned too little: at no site of docs/results/light.md is it
farther than 0.03."""
MEANS = ("average", "trusted_average")
"""Rules of agreement by which SAM and the students' network share each label."""


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


@dataclass(frozen=True)
class Advice:
    """A sentence or two, and the command that they end in, or "".

    Args:
        text: what was seen, and what to do.
        command: to be typed.
    """

    text: str
    command: str = ""

    def __str__(self) -> str:
        return f"{self.text}\n  {self.command}" if self.command else self.text


def advice_on(run: RunData) -> list[Advice]:
    """Advice on a run, the most urgent first; none where nothing is out of order."""
    return [
        *_sites_away(run),
        *_weak_teacher(run),
        *_student_behind(run),
        *_teacher_is_better(run),
        *_nobody_knows(run),
    ]


def _sites_away(run: RunData) -> list[Advice]:
    """Sites whose update was left out in the last round, or in half of all rounds."""
    rounds = run.results["rounds"]
    away: dict[str, list[int]] = {}
    for update in run.skipped:
        away.setdefault(update["site"], []).append(update["round"])
    much = {site: found for site, found in away.items() if max(found) == rounds - 1 or 2 * len(found) >= rounds}
    if not much:
        return []
    where = ", ".join(f"{site} in {len(found)} of {counted(rounds, 'round')}" for site, found in much.items())
    return [
        Advice(
            f"Updates were left out: {where}. The model has learned little there, or long ago; the reasons are below "
            "under skipped updates."
        )
    ]


def _weak_teacher(run: RunData) -> list[Advice]:
    teacher = run.results.get("teacher") or {}
    alone = teacher_alone(run.results)
    dices = {site: splits["test"]["dice"] for site, splits in (alone or {"sites": {}})["sites"].items() if splits}
    low = {site: dice for site, dice in dices.items() if dice is not None and dice < LOW}
    held_out = (teacher.get("after") or {}).get("held_out")
    hints = _hints(teacher)
    found = []
    if held_out is not None and held_out < LOW:
        found.append(
            Advice(
                f"On public images that it was not fitted on, the teacher's Dice is {_score(held_out)}: it has not "
                "learned the task. Look whether the public masks belong to their images (the data report of `samfed "
                "prepare` shows them), then fit longer (--teacher#epochs) or on more images."
            )
        )
    if low:
        named = " and ".join(f"{_score(dice)} at {site}" for site, dice in low.items())
        wrong = "finds nothing that is right" if not any(low.values()) else "is wrong more often than right"
        where = f"at {len(low)} of {len(dices)} sites (Dice {named})"
        found.append(Advice(f"The teacher {wrong} {where}, and students learn from its masks. {hints}"))
    return found


def _hints(teacher: Mapping[str, Any]) -> str:
    """What makes a teacher better."""
    if teacher.get("adapt") == "none":
        return "SAM as it comes was the teacher: --teacher_adapt lora fits it to the public images."
    return (
        "What helps, in this order: public images that look like the sites', a longer fit (--teacher#epochs), a "
        "teacher that each site trains further on its own images (--teacher#self_training#epochs 10)."
    )


def _student_behind(run: RunData) -> list[Advice]:
    gaps = {name: gap for name, gap in _gaps(run).items() if gap[0] < gap[1] - BEHIND}
    if not gaps:
        return []
    named = ", ".join(f"{_score(student)} and {_score(teacher)} {name}" for name, (student, teacher) in gaps.items())
    return [
        Advice(
            f"The student stays far behind its teacher (test Dice {named}). {_from_random_numbers(run)}It may need "
            "more steps (--rounds, --local_steps), larger images (--image_size) or a larger network (--network_name); "
            "the report's figure of trust shows whether it learns from SAM at all."
        )
    ]


def _from_random_numbers(run: RunData) -> str:
    """What a network that began with random numbers lacks, where it had a say in its own labels; else ""."""
    client = run.run.get("config", {}).get("client", {})
    if run.results.get("start"):
        return ""
    if client.get("agreement", {}).get("rule") not in MEANS or not _began_with_random_numbers(client):
        return ""
    return (
        "Its network began with random numbers, and the rule of agreement gives it a say in its own labels: let SAM "
        "decide alone (--agreement#rule teacher), with the full colour augmentation "
        "(--strong_view#strength 1.0). "
    )


def _began_with_random_numbers(client: Mapping[str, Any]) -> bool:
    """Whether the network of a ``train.json`` is one of the catalogue that no file of weights was read into."""
    from samfed_monai.networks.weights import starts_from  # torch: not where nothing lags behind

    name = client.get("network_name", "")
    if client.get("network_def", {}).get("_target_") != CATALOGUE or name.startswith("sam_"):  # SAM is a checkpoint
        return False
    return starts_from(name, client.get("encoder_weights")) is None


def _teacher_is_better(run: RunData) -> list[Advice]:
    average = _gaps(run).get(AVERAGE)
    if average is None or average[1] <= average[0]:
        return []
    teacher = run.results["teacher"]
    took = [cost["milliseconds"] for cost in run.results.get("costs", {}).values()]
    cost = ""
    if took and "milliseconds" in teacher:
        cost = f" An image takes it {_ms(teacher['milliseconds'])} on one thread, the student {_ms(max(took))}."
    text = (
        f"The teacher itself is better than the student on the same test images (Dice {_score(average[1])}, the "
        f"student's {_score(average[0])}). On a machine that can run SAM, the teacher can be run instead.{cost}"
    )
    if teacher.get("adapt") == "none":
        return [Advice(f"{text} `samfed teach` makes the file that `samfed infer --model` runs.")]
    if "self_training_epochs" in teacher:
        text += " Each site's own is in its soft-mask store, teachers/."
    bundle = bundle_of_command(run.results.get("command")) or "BUNDLE"
    words = ["samfed", "infer", bundle, "IMAGES", "--output-dir", "MASKS", "--model", _adapter(run)]
    return [Advice(text, shlex.join(words))]


def _nobody_knows(run: RunData) -> list[Advice]:
    between = {site: sum(dices) / len(dices) for site, dices in run.student_and_teacher().items()}
    low = {site: dice for site, dice in between.items() if dice < LOW}
    if not low:
        return []
    named = ", ".join(f"{_score(dice)} at {site}" for site, dice in low.items())
    trust = {site: rounds[-1][1] for site, rounds in series(run.rounds, "trust").items() if site in low}
    shares = ", ".join(f"{value:.2f} at {site}" for site, value in trust.items())
    say = f" In the last round SAM had a say of {shares} (1 is full, 0 is none)." if shares else ""
    return [
        Advice(
            f"Student and teacher draw different masks where no mask says who is right (Dice between them {named}): "
            f"look at these sites' images in the report before you use either.{say} Where it is the teacher that is "
            f"wrong: {uncapitalised(_hints(run.results.get('teacher') or {}))}"
        )
    ]


AVERAGE = "on average"


def _gaps(run: RunData) -> dict[str, tuple[float, float]]:
    """Test Dice of student and teacher, on average and by site, where both are known."""
    alone = teacher_alone(run.results)
    if alone is None:
        return {}
    tables: dict[str, tuple[Any, Any]] = {AVERAGE: (run.results["average"], alone["average"])}
    tables |= {f"at {site}": (run.results["sites"][site], splits) for site, splits in alone["sites"].items() if splits}
    dices = {name: tuple(one["test"]["dice"] for one in both) for name, both in tables.items()}
    return {name: (student, teacher) for name, (student, teacher) in dices.items() if None not in (student, teacher)}


def _adapter(run: RunData) -> str:
    """The file of the teacher, where the run's folder or command says which it is."""
    given = run.setting("adapter")
    if isinstance(given, str):
        return given
    cache = Path(run.setting("cache_dir") or run.folder / "cache")
    found = sorted((cache / "teacher").glob("*.safetensors"))
    return str(found[0]) if len(found) == 1 else "ADAPTER.safetensors"


def _ms(milliseconds: float) -> str:
    return f"{milliseconds:.0f} ms" if milliseconds >= 1 else "less than 1 ms"


def _score(dice: float) -> str:
    return f"{dice:.3f}" if dice else "0"
