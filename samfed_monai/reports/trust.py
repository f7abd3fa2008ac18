"""How far the masks of a run's model are to be trusted at each site, with labels or without."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean
from typing import Any

from samfed_monai.core.io import read_json
from samfed_monai.metrics.quality import DOUBTFUL, IN_RUN, Quality
from samfed_monai.reports.run_data import RunData

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


def quality_of_run(run: RunData) -> Quality:
    """What the run knows of its model's masks; nothing of a run that is not finished, or of an older one."""
    path = run.folder / IN_RUN
    try:
        return Quality.from_dict(read_json(path)) if path.is_file() else Quality()
    except ValueError:
        return Quality()


def trust(run: RunData) -> list[Trust]:
    """One entry for every site whose tables are in the run's folder and have estimates."""
    calibration, found = quality_of_run(run).calibration, []
    for site in run.sites:
        tested = run.image_scores(site)
        rows: list[dict[str, Any]] = [row for row in tested or run.disagreement(site) if row.get("estimate")]
        made = [(float(row["estimate"]), row["id"]) for row in rows]
        expected = sorted((calibration(each)[0] if calibration else each, name) for each, name in made)
        if expected:
            values = [each for each, _ in expected]
            doubtful = sum(each < DOUBTFUL for each in values)
            first = [(name, each) for each, name in expected[:FIRST]]
            found.append(Trust(site, len(values), bool(tested), fmean(values), doubtful, first))
    return found
