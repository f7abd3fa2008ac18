"""What a run's own scores say, in sentences: how good the model is, how far to trust its masks, what to do next."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from samfed_monai.config.bundles import bundle_of_command
from samfed_monai.core.words import counted, uncapitalised
from samfed_monai.metrics import BESIDE
from samfed_monai.metrics.quality import DOUBTFUL, estimate_of
from samfed_monai.metrics.quality_file import read_quality
from samfed_monai.reports.paired import LEVEL, bootstrap_interval
from samfed_monai.reports.run_data import RunData, teacher_alone
from samfed_monai.reports.style import as_difference, as_score

_MOST_NAMES = 3  # of sites in a sentence


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Bootstrap interval of 95 % of the mean over images; ``None`` of fewer than two.

    The expanded percentile interval of Hesterberg (The American Statistician 69(4), 2015, section 4.2): its tails are
    those of Student's t, since plain percentiles of few images are too narrow.

    Args:
        values: one per image.
    """
    from scipy.stats import norm, t

    n = len(values)
    if n < 2:
        return None
    tail = norm.cdf(t.ppf((1 - LEVEL) / 2, n - 1) * math.sqrt(n / (n - 1)))
    return bootstrap_interval(values, level=1 - 2 * float(tail))


def spread(run: RunData, sites: Sequence[str] | None = None, split: str = "test") -> str:
    """The interval of a run's Dice over the images of a split: ``0.71 to 0.85``.

    Args:
        run: finished.
        sites: whose images; ``None``: of all sites that trained.
        split: ``test`` or ``validation``.

    Returns:
        "" of fewer than two images, and where the table of a site is not here, as on FLARE.
    """
    everywhere = {**(run.results.get("unseen") or {}), **run.results["sites"]}
    tables = {site: run.image_scores(site, split=split) for site in (run.sites if sites is None else sites)}
    if any(len(rows) != (everywhere[site].get(split) or {"n": 0})["n"] for site, rows in tables.items()):
        return ""
    found = interval([row["dice"] for rows in tables.values() for row in rows])
    return "" if found is None else f"{found[0]:.2f} to {found[1]:.2f}"


def answer(run: RunData) -> list[str]:
    """How good a finished run's model is, where model and report are, and the command that draws masks with it.

    Args:
        run: finished.
    """
    results, folder = run.results, str(run.folder)
    number = results["models"][results["selected"]].get("round")
    round = "" if number is None else f", round {number + 1} of {results['rounds']}"
    if number == -1:  # of the schema: the network that the rounds began with
        scores = "{by} {start:.3f}, in the best round {rounds:.3f}".format(**results["against_start"])
        round = f", the network that the run began with, as no round is better ({scores})"
    site = ["--site", run.sites[0]] if run.own_models else []
    bundle = bundle_of_command(results.get("command")) or "BUNDLE"
    words = ["samfed", "infer", bundle, "IMAGES", "--model", folder, *site, "--output-dir", "MASKS"]
    return [
        _how_good(run),
        f"model: {folder}{round}; report: {run.folder / 'report.html'}",
        f"next: {shlex.join(words)}",
    ]


def _how_good(run: RunData) -> str:
    """``test Dice 0.79 (0.71 to 0.85, 6 images at A; B has no masks)``; of validation where no test image has one."""
    split = next((name for name in ("test", "validation") if run.results["average"][name]["n"]), None)
    if split is None:
        return "; ".join(["no Dice", *_without_dice(run, run.sites, "test")])
    summary = run.results["average"][split]
    measured = [site for site in run.sites if run.results["sites"][site][split]["n"]]
    where = ", ".join(measured) if len(measured) <= _MOST_NAMES else counted(len(measured), "site")
    images = f"{counted(summary['n'], 'image')} at {where}"
    said = ", ".join(filter(None, [spread(run, measured, split), images]))
    others = _without_dice(run, [site for site in run.sites if site not in measured], split)
    chose = "" if split == "test" else ", which chose the round: expect less on new images"
    return f"{split} Dice {summary['dice']:.2f} ({'; '.join([said, *others])}){chose}"


def _without_dice(run: RunData, sites: Sequence[str], split: str) -> list[str]:
    """What is said of sites without a Dice, one after the other; of many, how many they are."""
    if len(sites) > _MOST_NAMES:
        return [f"{len(sites)} sites have no score"]
    held = withheld(run, split)
    found, apart, promised = [], run.student_and_teacher(), {each.site: each for each in trust(run)}
    for site in sites:
        agree = f", student and teacher agree by a Dice of {fmean(apart[site]):.2f}" if site in apart else ""
        agree += f", expected Dice {promised[site].expected:.2f}" if site in promised else ""
        found.append(f"{site} withheld its score" if site in held else f"{site} has no masks{agree}")
    return found


def withheld(run: RunData, split: str = "test") -> list[str]:
    """Sites that had masks of too few images to report a score of a split."""
    held = (run.results.get("privacy") or {}).get("withheld", [])
    return [each["site"] for each in held if each["split"] == split]


def more_scores(run: RunData) -> list[dict[str, Any]]:
    """Test scores beside Dice by site and unseen hospital, for the report; a number that a site did not send is
    ``None``."""
    everywhere = {**run.results["sites"], **(run.results.get("unseen") or {})}
    tests = {site: splits["test"] for site, splits in everywhere.items() if splits.get("test", {}).get("n")}
    names = ("dice", *BESIDE, "n")
    return [
        {"site": site, "spread": spread(run, [site]), **{name: summary.get(name) for name in names}}
        for site, summary in tests.items()
    ]


FIRST = 5
"""Images of a site that are named, the most doubtful first."""


@dataclass(frozen=True)
class Trust:
    """What is expected of the masks of one site's images.

    Args:
        site: name.
        images: how many were looked at.
        labelled: whether these are its test images; otherwise images without labels.
        expected: mean expected Dice, in [0, 1].
        doubtful: how many have less than :data:`DOUBTFUL`.
        first: ids and expected Dice of those most doubtful.
    """

    site: str
    images: int
    labelled: bool
    expected: float
    doubtful: int
    first: list[tuple[str, float]]


def trust(run: RunData) -> list[Trust]:
    """One entry for every site whose tables are in the run's folder and have estimates."""
    calibration, found = read_quality(run.folder).calibration, []
    for site in run.sites:
        tested = run.image_scores(site)
        rows: list[dict[str, Any]] = [row for row in tested or run.disagreement(site) if row.get("estimate")]
        made = [(estimate_of(row, run.results["sites"][site]["test"]), row["id"]) for row in rows]
        expected = sorted((calibration(each)[0] if calibration else each, name) for each, name in made)
        if expected:
            values = [each for each, _ in expected]
            doubtful = sum(each < DOUBTFUL for each in values)
            first = [(name, each) for each, name in expected[:FIRST]]
            found.append(Trust(site, len(values), bool(tested), fmean(values), doubtful, first))
    return found


LOW = 0.5
"""Dice below which more of two masks is apart than together."""
BEHIND = 0.05
"""How far below its teacher a student is taken to have learned too little: at no site of docs/results/light.md is it
farther than 0.03."""
AVERAGE = "on average"
HINTS = (
    "What helps, in this order: public images that look like the sites', a longer fit (--teacher#epochs), a second "
    "generation, for which this run's network makes the masks (--masks-from this run)."
)
NETWORK = "A trained network made them: begin with a better one, or with SAM (no --masks-from)."
UNADAPTED = "SAM as it comes was the teacher: --teacher_adapt lora fits it to the public images."


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
    if held := withheld(run):
        few = f"No site reported a score: {', '.join(held)} had too few images with masks."
        return f"{few} Look at the images below, and label more at one site."
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
    teacher = run.results.get("teacher") or {}
    if "model" in teacher:
        return NETWORK
    return UNADAPTED if teacher.get("adapt") == "none" else HINTS


def _student_behind(run: RunData) -> list[str]:
    if "model" in (run.results.get("teacher") or {}):  # the student of another run, with more views
        return []
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
