"""The data report: one self-contained HTML page to look at, and one CSV row per image to compute with."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from samfed_monai import __version__
from samfed_monai.data.datalist import DataList
from samfed_monai.data.duplicates import warnings as duplicate_warnings
from samfed_monai.data.grouping import subset
from samfed_monai.data.items import Item, Split
from samfed_monai.data.paths import confine
from samfed_monai.data.reading import read_image, read_mask
from samfed_monai.data.sources.published import Coverage
from samfed_monai.data.statistics import Row, doubts, first_seen, rows
from samfed_monai.data.survey import Facts, survey
from samfed_monai.data.thumbnails import data_uri, overlay
from samfed_monai.io import write_text

SAMPLES = 6
SQUARES = 24
COLUMNS = (
    *("site", "split", "image", "sha256", "width", "height", "mode", "label", "label_sha256", "mask_values"),
    *("foreground", "empty", "full", "group", "duplicate_of", "exif_orientation", "misfit"),
)


@dataclass(frozen=True)
class Sample:
    """One picture of the report."""

    name: str
    picture: str
    note: str


def report_on(
    datalist: str | Path | DataList, data_root: str | Path, page: str | Path, *, progress: bool = True
) -> Path:
    """Writes the report of a list that exists already.

    Args:
        datalist: the list, or its JSON file.
        data_root: folder that its paths are relative to.
        page: HTML file to write; the CSV goes beside it.
        progress: whether to show a progress bar.
    """
    datalist = datalist if isinstance(datalist, DataList) else DataList.load(datalist)
    pairs = [(item.image, item.label) for _, _, item in datalist.items()]
    facts = survey(pairs, data_root, threshold=datalist.mask_threshold, progress=progress)
    sentences = [*duplicate_warnings(datalist), *doubts(datalist, facts)]
    return write_report(datalist, facts, data_root, page, warnings=sentences)


def write_report(
    datalist: DataList,
    facts: Sequence[Facts],
    data_root: str | Path,
    page: str | Path,
    *,
    warnings: Sequence[str] = (),
    coverage: Sequence[Coverage] = (),
) -> Path:
    """Writes ``page`` and, with the suffix ``.csv``, the table of all images.

    The page carries small pictures, drawn from pixels only: nothing of a file's EXIF gets into it (fault 60).

    Args:
        datalist: a list without problems.
        facts: of every item.
        data_root: folder that the list's paths are relative to.
        page: HTML file to write.
        warnings: sentences to print on top.
        coverage: for a published list, what of it is at hand.
    """
    page = Path(page)
    by_image = {fact.image: fact for fact in facts}
    table = rows(datalist, by_image)
    environment = Environment(
        loader=PackageLoader("samfed_monai.data"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["bars"] = bars
    html = environment.get_template("data_report.html.j2").render(
        datalist=datalist,
        rows=table,
        totals=totals(table),
        coverage=coverage,
        warnings=warnings,
        galleries=_galleries(datalist, by_image, Path(data_root)),
        squares=_squares(datalist, by_image, Path(data_root)),
        csv=page.with_suffix(".csv").name,
        version=__version__,
    )
    write_text(page, html)
    write_text(page.with_suffix(".csv"), table_of_images(datalist, by_image))
    return page


def totals(table: Sequence[Row]) -> dict[str, int]:
    """Sums over all rows, for the top of the page."""
    by_split = {split.value: sum(row.images for row in table if row.split == split.value) for split in Split}
    return {"images": sum(by_split.values()), "masks": sum(row.labelled for row in table), **by_split}


def bars(counts: Sequence[int], width: int = 100, height: int = 22) -> str:
    """Points of an SVG path that draws counts as adjacent bars, the highest filling the height."""
    step, top = width / len(counts), max([*counts, 1])
    return " ".join(
        f"M{index * step:g},{height}v{-height * count / top:.1f}h{step - 1.5:g}V{height}z"
        for index, count in enumerate(counts)
        if count
    )


def table_of_images(datalist: DataList, facts: Mapping[str, Facts]) -> str:
    """CSV with one row per image; the foreground is a share in [0, 1]."""
    first = first_seen([item for _, _, item in datalist.items()])
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    for site, split, item in datalist.items():
        fact = facts[item.image]
        share = fact.foreground if item.label else None
        writer.writerow(
            [
                site,
                split.value,
                item.image,
                item.sha256,
                fact.width,
                fact.height,
                fact.mode,
                item.label or "",
                item.label_sha256 or "",
                " ".join(map(str, fact.mask_values)) if item.label else "",
                "" if share is None else f"{share:.5f}",
                "" if share is None else int(share == 0),
                "" if share is None else int(share == 1),
                item.group or "",
                first[item.sha256] if first[item.sha256] != item.image else "",
                int(fact.turned),
                f"{fact.misfit:.4f}" if item.label else "",
            ]
        )
    return stream.getvalue()


def _galleries(datalist: DataList, facts: Mapping[str, Facts], root: Path) -> list[tuple[str, list[Sample]]]:
    places = [("Public", datalist.public)]
    places += [(name, [item for _, items in site.splits() for item in items]) for name, site in datalist.sites.items()]
    galleries = []
    for name, items in places:
        candidates = [item for item in items if item.label] or items
        chosen = [candidates[index] for index in subset([item.sha256 for item in candidates], SAMPLES)]
        galleries.append((name, [_sample(item, facts[item.image], root, datalist.mask_threshold) for item in chosen]))
    return galleries


def _squares(datalist: DataList, facts: Mapping[str, Facts], root: Path) -> list[Sample]:
    """Square pictures, those first whose masks would fit better if they were turned."""
    square = [
        item
        for _, _, item in datalist.items()
        if item.label and facts[item.image].width == facts[item.image].height and facts[item.image].foreground
    ]
    square.sort(key=lambda item: (-facts[item.image].misfit, item.sha256))
    return [_sample(item, facts[item.image], root, datalist.mask_threshold) for item in square[:SQUARES]]


def _sample(item: Item, fact: Facts, root: Path, threshold: int | None) -> Sample:
    picture = read_image(confine(root, item.image, where=item.image))
    mask = read_mask(confine(root, item.label, where=item.label), threshold) if item.label else None
    note = f"{fact.width} × {fact.height}"
    if fact.foreground is not None and item.label:
        note += f" · {fact.foreground:.0%} lesion"
    return Sample(Path(item.image).stem, data_uri(overlay(picture, mask)), note)
