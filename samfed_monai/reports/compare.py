"""Variants against each other: one table of means and spreads over seeds, out of the results of many runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from samfed_monai.errors import Problems, Refused
from samfed_monai.reports.caveats import TEACHER, in_order, title_of
from samfed_monai.reports.run_data import RunData

FLOOR, CEILING = "dp_only", "oracle"
"""The rows that every other one is measured against (METHOD section 7)."""


@dataclass(frozen=True)
class Cell:
    """Values of one row and column, one per seed.

    Args:
        by_seed: seed to value.
    """

    by_seed: dict[int, float] = field(default_factory=dict)

    @property
    def n(self) -> int:
        return len(self.by_seed)

    @property
    def mean(self) -> float | None:
        return fmean(self.by_seed.values()) if self.by_seed else None

    @property
    def spread(self) -> float | None:
        """Sample standard deviation over seeds; ``None`` with fewer than two."""
        return stdev(self.by_seed.values()) if self.n > 1 else None


@dataclass(frozen=True)
class Row:
    """One variant: its cells by column key, and the share of the gap it closes."""

    variant: str
    seeds: list[int]
    cells: dict[str, Cell]
    gap: float | None = None

    @property
    def title(self) -> str:
        return title_of(self.variant)


@dataclass(frozen=True)
class Table:
    """A comparison: rows in the order of :data:`samfed_monai.reports.caveats.VARIANTS`.

    Cells have the keys ``site:<name>`` (test Dice of a site), ``dice``, ``iou``, ``hd95`` (pixels) and ``worst`` (Dice)
    of the selected model, ``last`` (average Dice of the last model) and ``difference`` (average Dice minus that of
    ``dp_only`` with the same seed).
    """

    sites: list[str]
    rows: list[Row]
    notes: list[str]
    datalist: str | None = None
    versions: dict[str, list[str]] = field(default_factory=dict)

    def row(self, variant: str) -> Row:
        """The row of a variant; raises ``KeyError`` where there is none."""
        return {row.variant: row for row in self.rows}[variant]

    def difference(self, variant: str, other: str) -> Cell:
        """Average test Dice of one variant minus another's, paired by seed; empty where one of them is missing."""
        rows = {row.variant: row.cells["dice"].by_seed for row in self.rows}
        here, there = rows.get(variant, {}), rows.get(other, {})
        return Cell({seed: here[seed] - there[seed] for seed in sorted(here.keys() & there.keys())})


def comparison_table(runs: Sequence[str | Path]) -> Table:
    """The comparison of finished runs.

    The share of the gap closed is ``(row - dp_only) / (oracle - dp_only)`` of average test Dice, over the seeds that
    all three have; it is left out where the oracle does not lead.

    Args:
        runs: run folders, or their ``results.json`` files; one per variant and seed.

    Raises:
        Refused: a run is unfinished, two runs have the same variant and seed, or they are of different data lists or
            sites (their rows would not be comparable); everything is listed.
    """
    read = _read(runs)
    by_variant: dict[str, dict[int, Mapping[str, Any]]] = {}
    for run in read:
        by_variant.setdefault(run.results["variant"], {})[run.seed] = run.results
    measured = {variant: _cells(results) for variant, results in by_variant.items()}
    if teacher := _teacher_cells(by_variant):
        measured[TEACHER] = teacher
    floor = measured.get(FLOOR, {}).get("dice", Cell()).by_seed
    ceiling = measured.get(CEILING, {}).get("dice", Cell()).by_seed
    rows = []
    for variant in in_order(list(measured)):
        cells = measured[variant]
        dice = cells["dice"].by_seed
        if variant != FLOOR:
            cells["difference"] = Cell({seed: dice[seed] - floor[seed] for seed in sorted(dice.keys() & floor.keys())})
        rows.append(Row(variant, sorted(dice), cells, _gap(dice, floor, ceiling)))
    first = read[0].results
    return Table(
        sites=list(first["sites"]),
        rows=rows,
        notes=_notes(by_variant, rows, floor, ceiling),
        datalist=first["hashes"].get("datalist"),
        versions=_versions(read),
    )


def _read(runs: Sequence[str | Path]) -> list[RunData]:
    problems = Problems()
    read: list[RunData] = []
    for name in runs:
        path = Path(name)
        try:
            read.append(RunData.read(path.parent if path.name == "results.json" else path))
        except Refused as refused:
            problems.extend(refused.problems)
    if not runs:
        problems.add("runs", found="none", expected="at least one finished run", mend="name their folders")
    seen: dict[tuple[str, int], Path] = {}
    for run in read:
        key = (run.results["variant"], run.seed)
        if key in seen:
            found = f"{key[0]} with seed {key[1]}, as in {seen[key]}"
            problems.add(str(run.folder), found=found, expected="each variant and seed once", mend="leave one out")
        seen[key] = run.folder
        for what, value, first in (
            ("data list", run.results["hashes"].get("datalist"), read[0].results["hashes"].get("datalist")),
            ("sites", sorted(run.results["sites"]), sorted(read[0].results["sites"])),
        ):
            if value != first:
                mend = f"compare runs of one {what}"
                problems.add(
                    f"{run.folder} -> {what}", found=str(value), expected=f"{first} as in {read[0].folder}", mend=mend
                )
    problems.refuse_if_any()
    return read


def _cells(results: Mapping[int, Mapping[str, Any]]) -> dict[str, Cell]:
    def cell(*path: str) -> Cell:
        values = {seed: _at(content, path) for seed, content in sorted(results.items())}
        return Cell({seed: float(value) for seed, value in values.items() if value is not None})

    sites = next(iter(results.values()))["sites"]
    return {
        **{f"site:{site}": cell("sites", site, "test", "dice") for site in sites},
        **{metric: cell("average", "test", metric) for metric in ("dice", "iou", "hd95")},
        "worst": cell("worst", "test", "dice"),
        "last": cell("models", "last", "average", "test", "dice"),
    }


def _at(content: Any, path: Iterable[str]) -> Any:
    for key in path:
        content = content.get(key) if isinstance(content, Mapping) else None
    return content


def _teacher_cells(by_variant: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> dict[str, Cell] | None:
    """Scores of the teacher that SAM-Fed used, else of the first variant that had an adapted one."""
    order = ["samfed", *(name for name in in_order(list(by_variant)) if name not in ("samfed", "unadapted_sam"))]
    for variant in order:
        teachers = {
            seed: {**results["teacher"], "worst": _worst(results["teacher"])}
            for seed, results in by_variant.get(variant, {}).items()
            if _at(results, ("teacher", "average", "test", "dice")) is not None
        }
        if teachers:
            return _cells(teachers)
    return None


def _worst(teacher: Mapping[str, Any]) -> dict[str, Any]:
    dices = [_at(splits, ("test", "dice")) for splits in teacher["sites"].values()]
    found = [dice for dice in dices if dice is not None]
    return {"test": {"dice": min(found, default=None)}}


def _gap(dice: Mapping[int, float], floor: Mapping[int, float], ceiling: Mapping[int, float]) -> float | None:
    seeds = dice.keys() & floor.keys() & ceiling.keys()
    room = sum(ceiling[seed] - floor[seed] for seed in seeds)
    return sum(dice[seed] - floor[seed] for seed in seeds) / room if room > 0 else None


def _notes(
    by_variant: Mapping[str, Mapping[int, Mapping[str, Any]]],
    rows: Sequence[Row],
    floor: Mapping[int, float],
    ceiling: Mapping[int, float],
) -> list[str]:
    notes = []
    seeds = {row.variant: row.seeds for row in rows}
    if len({tuple(found) for found in seeds.values()}) > 1:
        listed = "; ".join(f"{variant}: {', '.join(map(str, found))}" for variant, found in seeds.items())
        notes.append(f"Rows have different seeds ({listed}); differences and shares use the seeds in common.")
    rounds = {variant: sorted({results["rounds"] for results in runs.values()}) for variant, runs in by_variant.items()}
    if len({tuple(found) for variant, found in rounds.items() if variant != FLOOR}) > 1:
        listed = "; ".join(f"{variant}: {', '.join(map(str, found))}" for variant, found in rounds.items())
        notes.append(f"Runs have different numbers of rounds ({listed}).")
    for variant, found_here in ((FLOOR, floor), (CEILING, ceiling)):
        if not found_here:
            notes.append(f"There is no {variant} row, so the share of the gap closed cannot be given.")
    common = floor.keys() & ceiling.keys()
    if common and sum(ceiling[seed] - floor[seed] for seed in common) <= 0:
        notes.append(f"{CEILING} does not lead {FLOOR}: the share of the gap closed is not defined.")
    if any(len(row.seeds) < 3 for row in rows):
        notes.append("Fewer than three seeds: the spread is not to be relied on.")
    return notes


def _versions(runs: Sequence[RunData]) -> dict[str, list[str]]:
    names = sorted({name for run in runs for name in run.results["versions"]})
    return {name: sorted({run.results["versions"].get(name, "unknown") for run in runs}) for name in names}
