"""The same test images side by side over the rows of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from samfed_monai.data import load_records
from samfed_monai.data.reading import png_of
from samfed_monai.reports.overlays import GIVE, drawn, mask_name, noted
from samfed_monai.reports.run_data import RunData

Scores = dict[str, dict[str, Any]]
"""Rows of the tables of test scores of one image, by the comparison's row."""


@dataclass(frozen=True)
class Compared:
    """A test image, and what every row found in it.

    Args:
        place: why it is shown: ``best``, ``median`` or ``worst`` by its mean Dice over rows, or ``rows differ most``.
        site: name.
        id: the image's id.
        png: the image alone.
        masks: row to its Dice, and the image with its mask and the label.
    """

    place: str
    site: str
    id: str
    png: bytes
    masks: dict[str, tuple[float, bytes]]


def side_by_side(runs: Sequence[RunData]) -> tuple[list[Compared], list[str]]:
    """Four images that every row scored and kept its masks of, with the rows' masks of one seed.

    Args:
        runs: of a comparison, of one data list.

    Returns:
        The images, and notes on why there are none, or fewer.
    """
    by_row = {row: {run.seed: run for run in runs if run.row == row} for row in dict.fromkeys(run.row for run in runs)}
    seeds = set.intersection(*map(set, by_row.values()))
    if not seeds:
        return [], ["the rows have no seed in common"]
    if any(run.setting("overlays") in (False, "false") for run in runs):
        return [], ["left out on request"]
    chosen_runs = {row: found[min(seeds)] for row, found in by_row.items()}
    where = {name: next(iter(chosen_runs.values())).setting(name) for name in ("datalist", "data_root")}
    if None in where.values():
        return [], [GIVE]
    shown, notes = list[Compared](), list[str]()
    for place, (site, identifier, scores) in _chosen(chosen_runs).items():
        with noted(notes, site):
            records = load_records(where["datalist"], where["data_root"], split="test", site=site)
            record = {record["id"]: record for record in records}[identifier]
            made = {
                row: drawn(record, chosen_runs[row].evaluation(site) / "masks" / mask_name(found))
                for row, found in scores.items()
            }
            masks = {row: (scores[row]["dice"], png_of(overlay)) for row, (_, overlay) in made.items()}
            shown.append(Compared(place, site, identifier, png_of(next(iter(made.values()))[0]), masks))
    return shown, list(dict.fromkeys(notes))


def _chosen(runs: dict[str, RunData]) -> dict[str, tuple[str, str, Scores]]:
    """Place to site, id and scores, each image once; none where no image was scored by all rows."""
    images = list[tuple[str, str, Scores]]()
    for site in next(iter(runs.values())).sites:
        tables = {row: {each["id"]: each for each in run.image_scores(site)} for row, run in runs.items()}
        common = sorted(set.intersection(*map(set, tables.values())))
        images += [(site, each, {row: table[each] for row, table in tables.items()}) for each in common]

    def dices(image: tuple[str, str, Scores]) -> list[float]:
        return [row["dice"] for row in image[2].values()]

    order = sorted(images, key=lambda image: (fmean(dices(image)), image[:2]))
    found = dict[str, tuple[str, str, Scores]]()
    if order:
        found = {"worst": order[0], "best": order[-1], "median": order[len(order) // 2]}
        found["rows differ most"] = max(order, key=lambda image: max(dices(image)) - min(dices(image)))
    ids = [image[:2] for image in found.values()]
    return {place: image for at, (place, image) in enumerate(found.items()) if image[:2] not in ids[:at]}
