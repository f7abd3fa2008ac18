"""The report of one run: a self-contained ``report.html``, and the summary that its command logs."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from samfed_monai.config.bundles import bundle_of_command
from samfed_monai.config.method import EXCHANGES
from samfed_monai.core.io import PRIVATE, PUBLIC, write_bytes, write_page
from samfed_monai.core.run_log import RunLog
from samfed_monai.core.text import counted, grouped
from samfed_monai.metrics import EXTRAS
from samfed_monai.metrics.quality import DOUBTFUL, estimate_of, read_quality
from samfed_monai.reports.figures import run_figures
from samfed_monai.reports.overlays import NO_LIST, OTHER_LIST, OUTLINES, Shown, make_overlays, make_own_images
from samfed_monai.reports.rows import interval, title_of
from samfed_monai.reports.run_data import RunData, scored, teacher_alone
from samfed_monai.reports.style import CAVEATS, DEFAULT_CONVENTION, PRIVACY, Picture, as_ranges, environment, sentences
from samfed_monai.results import fall_of

logger = logging.getLogger(__name__)


class Report:
    """Writes ``report.html`` and ``figures/*.png`` into a run folder.

    Args:
        run_folder: folder with ``results.json``, or that file, and, optionally, ``run.json``, ``federation.csv`` and
            ``evaluation/``.
        datalist: data list for the overlays; ``None`` takes that of the run's command.
        data_root: folder of the images; ``None`` takes that of the run's command.
        overlays: whether to show test images; ``False`` leaves every image and id out of the report.
        unfinished: whether to report the stored rounds of a running run; test images are shown after its end, those of
            sites without masks after every round.

    Example::

        {"_target_": "samfed_monai.reports.Report", "run_folder": "@output_dir"}
    """

    def __init__(
        self,
        run_folder: str | Path,
        *,
        datalist: str | Path | None = None,
        data_root: str | Path | None = None,
        overlays: bool = True,
        unfinished: bool = False,
    ) -> None:
        self.run_folder, self.unfinished = Path(run_folder), unfinished
        self.places = {"datalist": datalist, "data_root": data_root}
        self.overlays = overlays

    def write(self) -> Path:
        """Renders the report and returns its path; its log records also go to the run's ``run.log``.

        Raises:
            Refused: there is no ``results.json``, or it does not match the schema.
        """
        run = RunData.read(self.run_folder, unfinished=self.unfinished)
        if run.planned is not None:  # the log belongs to the running run
            return self._write(run)
        with RunLog().kept() as log:
            log.into(run.folder)
            return self._write(run)

    def _write(self, run: RunData) -> Path:
        figures, folder, finished = run_figures(run), run.folder / "figures", run.planned is None
        overlays, own, notes = list[Shown](), None, ["all sites: left out on request"] * finished
        if self.overlays:
            places = {name: given or run.setting(name) for name, given in self.places.items()}
            overlays, notes = make_overlays(run, **places) if finished else ([], [])
            own, unread = make_own_images(run, **places)
            notes += [note for note in unread if notes != [f"all sites: {NO_LIST}"]]
            if f"all sites: {OTHER_LIST}" in notes:
                logger.warning("%s: no test images in the report: %s", places["datalist"], OTHER_LIST)
        for path in [*folder.glob("overlay-*.png"), *folder.glob("own-*.png")]:  # from an earlier report
            path.unlink()
        for figure in figures:
            write_bytes(folder / f"{figure.name}.png", figure.png, mode=PUBLIC)
        for kind, images in (("overlay", overlays), ("own", own or [])):
            for each in images:
                write_bytes(folder / f"{kind}-{run.sites.index(each.site) + 1}-{each.place}.png", each.png)
        path = run.folder / "report.html"
        private = self.overlays and (overlays or own or trust(run))
        write_page(path, render(run, figures, overlays, notes, own), mode=PRIVATE if private else PUBLIC)
        logger.info("report: %s", path)
        for sentence in advice_on(run):
            logger.warning("%s", sentence)
        for line in run_summary(run) if finished else ():
            logger.info("%s", line)
        return path


def render(
    run: RunData, figures: list[Picture], overlays: list[Shown], notes: list[str], own: list[Shown] | None = None
) -> str:
    """Returns the HTML page; everything that comes from the run is escaped.

    Args:
        run: a finished or running run.
        figures: its figures.
        overlays: test images.
        notes: reasons why sites have no test images.
        own: images without masks; ``None`` omits their part of the page, and the ids of doubtful images.
    """
    results, agreement, trusted = run.results, run.student_and_teacher(), trust(run)
    private = overlays or own or (trusted and own is not None)
    trusted = [replace(each, first=[]) for each in trusted] if own is None else trusted
    shown = {
        "run": run,
        "results": results,
        "title": title_of(results["variant"]),
        "figures": {figure.name: figure for figure in figures},
        "overlays": {site: drawn for site in run.sites if (drawn := [each for each in overlays if each.site == site])},
        "notes": notes,
        "own": own,
        "trust": trusted,
        "calibrated": read_quality(run.folder).calibration,
        "doubtful_below": DOUBTFUL,
        "outlines": {name: f"rgb{colour}" for name, colour in OUTLINES.items()},
        "withheld": withheld(run),
        "caveats": [*CAVEATS, *results.get("caveats", []), *([PRIVACY] if private else [])],
        "verdict": verdict(run),
        "spread": spread(run),
        "more": more_scores(run),
        "teacher_alone": teacher_alone(results),
        "apart": [{"site": site, "dices": dices, "dice": fmean(dices)} for site, dices in agreement.items()],
        "advice": advice_on(run),
        "skipped": skipped_rounds(run),
        "exchange": EXCHANGES.get(results.get("exchange", "")),
        "convention": {**DEFAULT_CONVENTION, **results.get("convention", {})},
    }
    return environment().get_template("report.html.j2").render(shown)


def skipped_rounds(run: RunData) -> list[tuple[str, str, str]]:
    """Returns rows (rounds from 1 such as ``6, 8–10``, site, reason) of updates that were not aggregated."""
    rounds = grouped(((update["site"], update["reason"]), update["round"] + 1) for update in run.skipped)
    return [(as_ranges(numbers), site, reason) for (site, reason), numbers in rounds.items()]


def spread(run: RunData, sites: Iterable[str] | None = None, split: str = "test") -> str:
    """Returns the interval of a run's Dice over the images of a split, such as ``0.71 to 0.85``.

    Args:
        run: a finished run.
        sites: sites of the images; ``None``: all sites that trained.
        split: ``test`` or ``validation``.

    Returns:
        The interval; "" for fewer than two images, or if the table of a site is not available, as on FLARE.
    """
    scores, dices = _scores_by_site(run), list[float]()
    for site in run.sites if sites is None else sites:
        rows = run.image_scores(site, split=split)
        if len(rows) != scores[site].get(split, {"n": 0})["n"]:
            return ""
        dices += [row["dice"] for row in rows]
    bounds = interval(dices)
    return "" if bounds is None else f"{bounds[0]:.2f} to {bounds[1]:.2f}"


def _scores_by_site(run: RunData) -> dict[str, Any]:
    """Returns the scores by split of the sites and of unseen hospitals."""
    return {**run.results["sites"], **(run.results.get("unseen") or {})}


def more_scores(run: RunData) -> list[dict[str, Any]]:
    """Returns all test scores by site and unseen hospital; numbers that a site did not send are ``None``."""
    tests = {site: splits["test"] for site, splits in _scores_by_site(run).items() if scored(splits)}
    names = ("dice", *EXTRAS, "n")
    return [
        {"site": site, "spread": spread(run, [site]), **{name: summary.get(name) for name in names}}
        for site, summary in tests.items()
    ]


def withheld(run: RunData, split: str = "test") -> list[str]:
    """Returns the sites that withheld the score of a split, as too few of its images have masks."""
    return [each["site"] for each in (run.results.get("privacy") or {}).get("withheld", []) if each["split"] == split]


_MOST_NAMES = 3  # sites named in a sentence


def run_summary(run: RunData) -> list[str]:
    """Returns lines with the Dice of a finished run's model, the paths of model and report, and the next command."""
    results, folder = run.results, str(run.folder)
    number = results["models"][results["selected"]].get("round")
    round = "" if number is None else f", round {number + 1} of {results['rounds']}"
    if number == -1:  # in the schema, the network before the first round
        scores = "{by} {start:.3f}, in the best round {rounds:.3f}".format(**results["against_start"])
        round = f", the network that the run began with, as no round is better ({scores})"
    site = [f"--site={run.sites[0]}"] if run.own_models else []  # a name may begin with a dash
    bundle = bundle_of_command(results.get("command")) or "BUNDLE"
    command = ["samfed", "infer", bundle, "IMAGES", "--model", folder, *site, "--output-dir", "MASKS"]
    return [
        _dice_sentence(run),
        f"model: {folder}{round}; report: {run.folder / 'report.html'}",
        f"next: {shlex.join(command)}",
    ]


def _dice_sentence(run: RunData) -> str:
    """Returns ``test Dice 0.79 (0.71 to 0.85, 6 images at A; B has no masks)``; validation Dice without test masks."""
    split = next((name for name in ("test", "validation") if run.results["average"][name]["n"]), None)
    if split is None:
        return "; ".join(["no Dice", *_without_dice(run, run.sites, "test")])
    summary = run.results["average"][split]
    measured = [site for site in run.sites if run.results["sites"][site][split]["n"]]
    where = ", ".join(measured) if len(measured) <= _MOST_NAMES else counted(len(measured), "site")
    main = ", ".join(filter(None, [spread(run, measured, split), f"{counted(summary['n'], 'image')} at {where}"]))
    others = _without_dice(run, [site for site in run.sites if site not in measured], split)
    caveat = "" if split == "test" else ", which chose the round: expect less on new images"
    return f"{split} Dice {summary['dice']:.2f} ({'; '.join([main, *others])}){caveat}"


def _without_dice(run: RunData, sites: Sequence[str], split: str) -> list[str]:
    """Describes each site without a Dice; returns only the number of sites if there are many."""
    if len(sites) > _MOST_NAMES:
        return [f"{len(sites)} sites have no score"]
    reasons = dict.fromkeys(run.results.get("unscored", ()), "sent no score")
    reasons |= dict.fromkeys(withheld(run, split), "withheld its score")
    by_site = run.student_and_teacher()
    agree = {site: f", student and teacher agree by a Dice of {fmean(dices):.2f}" for site, dices in by_site.items()}
    calibration = "" if read_quality(run.folder).calibration else " (not calibrated)"
    expected = {each.site: f", expected Dice {each.expected:.2f}{calibration}" for each in trust(run)}
    unlabelled = {site: f"has no masks{agree.get(site, '')}{expected.get(site, '')}" for site in sites}
    return [f"{site} {reasons.get(site, unlabelled[site])}" for site in sites]


FIRST = 5
"""Number of a site's most doubtful images that are named."""


@dataclass(frozen=True)
class Trust:
    """Expected quality of the masks of one site's images.

    Args:
        site: name.
        images: number of images.
        labelled: whether these are its test images, or else images without labels.
        expected: mean expected Dice, in [0, 1].
        doubtful: number of images with an expected Dice below :data:`DOUBTFUL`.
        first: ids and expected Dice of the most doubtful images.
    """

    site: str
    images: int
    labelled: bool
    expected: float
    doubtful: int
    first: list[tuple[str, float]]


def trust(run: RunData) -> list[Trust]:
    """Returns an entry for every site whose tables in the run's folder have estimates."""
    calibration, entries = read_quality(run.folder).calibration, []
    for site in run.sites:
        tested = run.image_scores(site)
        rows: list[dict[str, Any]] = [row for row in tested or run.disagreement(site) if row.get("estimate")]
        estimates = [(estimate_of(row, run.results["sites"][site]["test"]), row["id"]) for row in rows]
        expected = sorted((calibration(each)[0] if calibration else each, name) for each, name in estimates)
        if expected:
            values = [each for each, _ in expected]
            doubtful = sum(each < DOUBTFUL for each in values)
            first = [(name, each) for each, name in expected[:FIRST]]
            entries.append(Trust(site, len(values), bool(tested), fmean(values), doubtful, first))
    return entries


LOW = 0.5
"""Dice below which two masks overlap by less than half of their mean size: failed images, disagreement."""
MAX_GAP = 0.05
"""Difference in Dice from which a student is reported as behind its teacher; no site of docs/results/light.md is
farther behind than 0.03."""
AVERAGE = "on average"


def verdict(run: RunData) -> str:
    """Returns the test Dice with the teacher's and the worst site's, and the number of images on which the model fails.

    For a running run, or one without test masks, it is the validation Dice. Whether that is enough is for the user to
    decide.

    Args:
        run: a finished or running run.
    """
    results, tables = run.results, teacher_alone(run.results)
    dices = [row["dice"] for site in run.sites for row in run.image_scores(site)]
    several = sum(scored(splits) for splits in results["sites"].values()) > 1
    found = sentences(
        "verdict.j2",
        run=run,
        average=results["average"],
        spread=spread(run),
        teacher=tables and tables["average"]["test"]["dice"],
        worst=results["worst"]["test"] if several else None,
        images=len(dices),
        failed=sum(dice < LOW for dice in dices),
        low=LOW,
        held=withheld(run),
    )
    return " ".join(found)


def advice_on(run: RunData) -> list[str]:
    """Returns advice, the most urgent first; none if nothing is wrong."""
    results, tables = run.results, teacher_alone(run.results)
    teacher = results.get("teacher") or {}
    taught = {site: splits for site, splits in tables["sites"].items() if splits} if tables else {}
    dices = {site: splits["test"]["dice"] for site, splits in taught.items()}
    gaps: dict[str, tuple[Any, Any]] = {}
    if tables and "model" not in teacher:  # the student of another run, with more views
        pairs = {AVERAGE: (results["average"], tables["average"])}
        pairs |= {f"at {site}": (results["sites"][site], splits) for site, splits in taught.items()}
        found = {name: (own["test"]["dice"], teachers["test"]["dice"]) for name, (own, teachers) in pairs.items()}
        gaps = {name: both for name, both in found.items() if None not in both}
    student, other = gaps.get(AVERAGE, (0.0, 0.0))
    agreement = {site: fmean(between) for site, between in run.student_and_teacher().items()}
    return sentences(
        "advice.j2",
        fall=fall_of(results["models"]),
        held_out=(teacher.get("after") or {}).get("held_out"),
        weak={site: dice for site, dice in dices.items() if dice is not None and dice < LOW},
        taught=len(dices),
        behind={name: both for name, both in gaps.items() if both[0] < both[1] - MAX_GAP},
        student=student,
        teacher=other,
        apart={site: dice for site, dice in agreement.items() if dice < LOW},
        made_by=teacher,
        low=LOW,
    )
