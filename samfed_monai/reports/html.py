"""The report of one run: ``report.html``, self-contained, with its figures beside it."""

from __future__ import annotations

import base64
import logging
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from samfed_monai.config.variants import EXCHANGES
from samfed_monai.core.io import PRIVATE, PUBLIC, write_bytes, write_page
from samfed_monai.core.run_log import RunLog
from samfed_monai.core.words import counted
from samfed_monai.data.classes import colour_of
from samfed_monai.metrics.quality import DOUBTFUL
from samfed_monai.metrics.quality_file import read_quality
from samfed_monai.reports import style
from samfed_monai.reports.answer import advice_on, answer, more_scores, spread, trust, verdict
from samfed_monai.reports.figures import run_figures
from samfed_monai.reports.overlays import (
    GIVE,
    OUTLINES,
    PLACES,
    Overlay,
    OwnImages,
    make_overlays,
    make_own_images,
    show_pictures,
)
from samfed_monai.reports.rows import title_of
from samfed_monai.reports.run_data import RunData, teacher_alone
from samfed_monai.reports.style import CAVEATS, Picture

if TYPE_CHECKING:
    from jinja2 import Environment

logger = logging.getLogger(__name__)

TEMPLATES = Path(__file__).parent / "templates"
ACTIVITIES = {
    "teacher": "Teacher",
    "soft_masks": "Soft masks",
    "warm_start": "Warm start",
    "training": "Training at the sites",
    "server": "Training at the server",
    "evaluation": "Evaluation",
    "controller": "Aggregation and storing",
}
PRIVACY = "This file shows images and their ids: treat it as you treat the images."


class Report:
    """Writes ``report.html`` and ``figures/*.png`` into a run folder.

    Args:
        run_folder: folder with ``results.json``; ``run.json``, ``federation.csv`` and ``evaluation/`` add to it.
        datalist: data list for the overlays; ``None`` takes what ``run.json`` names.
        data_root: folder of the images, likewise.
        overlays: whether to show test images; ``False`` leaves every image and id out of the report.
        unfinished: take a run that goes on as far as its stored rounds go; test images are shown when it has ended,
            those of sites without masks after every round.

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
        self.datalist, self.data_root, self.overlays = datalist, data_root, overlays

    def write(self) -> Path:
        """Renders the report and returns its path; what it logs is in the run's ``run.log``, too.

        Raises:
            Refused: there is no ``results.json``, or it does not follow the schema.
        """
        run = RunData.read(self.run_folder, unfinished=self.unfinished)
        if run.planned is not None:  # its log is the run's own, for which a page a round is nothing new
            return self._write(run)
        with RunLog().kept() as log:
            log.into(self.run_folder)
            return self._write(run)

    def _write(self, run: RunData) -> Path:
        figures = run_figures(run)
        overlays: list[Overlay] = []
        own: list[OwnImages] = []
        notes: list[str] = []
        if self.overlays:
            paths = {name: getattr(self, name) or run.setting(name) for name in ("datalist", "data_root")}
            if run.planned is None:
                overlays, notes = make_overlays(run, **paths)
            own, unread = make_own_images(run, **paths)
            notes += [note for note in unread if notes != [f"all sites: {GIVE}"]]
        elif run.planned is None:
            notes = ["all sites: left out on request"]
        folder = self.run_folder / "figures"
        for path in [*folder.glob("overlay-*.png"), *folder.glob("own-*.png")]:  # of an earlier report
            path.unlink()
        for figure in figures:
            write_bytes(folder / f"{figure.name}.png", figure.png, mode=PUBLIC)
        number = {site: place for place, site in enumerate(run.sites, start=1)}
        private = {f"overlay-{number[each.site]}-{each.place}": each.png for each in overlays}
        private |= {
            f"own-{number[of.site]}-{place}": image.png for of in own for place, image in enumerate(of.shown, start=1)
        }
        for name, png in private.items():
            write_bytes(folder / f"{name}.png", png)
        tags = {f"test/{each.site}/{each.place}": each.png for each in overlays}
        tags |= {f"own/{of.site}/{place}": image.png for of in own for place, image in enumerate(of.shown, start=1)}
        show_pictures(self.run_folder, tags, run.results["rounds"])
        path = self.run_folder / "report.html"
        write_page(path, render(run, figures, overlays, notes, own), mode=PRIVATE if private or trust(run) else PUBLIC)
        logger.info("report: %s", path)
        for sentence in advice_on(run):
            logger.warning("%s", sentence)
        for line in answer(run) if run.planned is None else ():
            logger.info("%s", line)
        return path


def render(
    run: RunData, figures: list[Picture], overlays: list[Overlay], notes: list[str], own: Sequence[OwnImages] = ()
) -> str:
    """The page as one string of HTML; everything that comes from the run is escaped."""
    results, apart, trusted = run.results, run.student_and_teacher(), trust(run)
    rows = {place: {o.site: o for o in overlays if o.place == place} for place in PLACES}
    other = next((name for name in results["models"] if name != results["selected"]), None)
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            run=run,
            results=results,
            title=title_of(results["variant"]),
            figures={figure.name: figure for figure in figures},
            overlays=rows,
            shown=[site for site in run.sites if any(site in row for row in rows.values())],
            notes=notes,
            own=own,
            trust=trusted,
            calibrated=read_quality(run.folder).calibration,
            doubtful_below=DOUBTFUL,
            outlines={name: f"rgb{colour}" for name, colour in OUTLINES.items()},
            other=other,
            measured_on=sum(summary["n"] for name in ("validation", "test") for summary in (results["average"][name],))
            or any(splits for splits in (results.get("teacher") or {}).get("average", {}).values()),
            caveats=[*CAVEATS, *results.get("caveats", []), *([PRIVACY] if overlays or own or trusted else [])],
            command=results.get("command") or run.setting("command"),
            verdict=verdict(run),
            spread=spread(run),
            more=more_scores(run),
            teacher_alone=teacher_alone(results),
            apart=[{"site": site, "dices": dices, "dice": fmean(dices)} for site, dices in apart.items()],
            advice=advice_on(run),
            skipped=skipped_rounds(run),
            activities=ACTIVITIES,
            networks=results.get("networks", {}),
            exchange=EXCHANGES.get(results.get("exchange", "")),
            convention={**style.DEFAULT_CONVENTION, **results.get("convention", {})},
        )
    )


def skipped_rounds(run: RunData) -> list[tuple[str, str, str]]:
    """Updates that were left out: rounds counted from 1 (``6, 8–10``), site, reason; one row for each reason."""
    rounds: dict[tuple[str, str], list[int]] = {}
    for update in run.skipped:
        rounds.setdefault((update["site"], update["reason"]), []).append(update["round"] + 1)
    return [(style.as_ranges(found), site, reason) for (site, reason), found in rounds.items()]


def environment() -> Environment:
    """Jinja with autoescaping on and the spellings of :mod:`samfed_monai.reports.style` as filters."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(
        score=style.as_score,
        pixels=style.as_pixels,
        bytes=style.as_bytes,
        seconds=style.as_seconds,
        percent=style.as_percent,
        mean=fmean,
        data_url=data_url,
        variant_title=title_of,
    )
    made.globals |= {"counted": counted, "colour_of": colour_of}
    return made


def data_url(content: bytes) -> str:
    """PNG bytes as a URL that needs no file."""
    return "data:image/png;base64," + base64.b64encode(content).decode()
