"""Rows against each other: one table of means and spreads over seeds, out of the results of many runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from samfed_monai.errors import Problems
from samfed_monai.metrics import pool
from samfed_monai.reports.compare_notes import convention_of, notes_of
from samfed_monai.reports.modes import CEILING, FLOOR, MODES, Mode, mode_of
from samfed_monai.reports.rows import Cell, Group, Row, difference, share_of_gap, titled
from samfed_monai.reports.run_data import RunData
from samfed_monai.reports.teacher_rows import teacher_alone, teachers_of
from samfed_monai.reports.variant_names import NOTES, TEACHER, title_of

Runs = Sequence[str | Path | RunData]


@dataclass(frozen=True)
class Table:
    """A comparison: groups of rows in the order of :data:`samfed_monai.reports.variant_names.VARIANTS`.

    Cells have the keys ``site:<name>`` (test Dice of a site), ``unseen:<name>`` (of a hospital that took no part),
    ``unseen`` (of all their images), ``dice``, ``iou``, ``hd95`` (pixels) and ``worst`` (Dice) of the selected model,
    ``last`` (average Dice of the last model), ``teacher`` (average Dice of the run's teacher alone), ``traffic``
    (megabytes per round, both directions, all sites), ``parameters`` (millions) and ``milliseconds`` (of an image) of
    the largest network at a site, and ``vs:<row>`` (average Dice minus that of the row with the same
    seed).
    """

    sites: list[str]
    unseen: list[str]
    groups: list[Group]
    notes: list[str]
    datalist: str | None = None
    versions: dict[str, list[str]] = field(default_factory=dict)
    convention: dict[str, str] | None = None

    @property
    def rows(self) -> list[Row]:
        """Rows of all groups."""
        return [row for group in self.groups for row in group.rows]

    def row(self, name: str) -> Row:
        """The row of that name, the first group's; raises ``KeyError`` where there is none."""
        return {row.name: row for row in reversed(self.rows)}[name]

    def difference(self, name: str, other: str, key: str = "dice") -> Cell:
        """One row's cell minus another's, paired by seed; empty where one of them is missing."""
        return difference(self.rows, name, other, key)

    def has(self, key: str) -> bool:
        """Whether any row has a value in that column."""
        return any(row.cells.get(key, Cell()).n for row in self.rows)


def comparison_table(runs: Runs) -> Table:
    """The comparison of finished runs.

    Rows are grouped by setting (a file of rows may name one) and by how their sites learn (``MODES``). The share of
    the gap closed is ``(row - dp_only) / (oracle - dp_only)`` of average test Dice, with the two rows of the same
    group, over the seeds that all three have; it is left out where the oracle does not lead.

    Args:
        runs: run folders, their ``results.json`` files, or runs that were read; one per row and seed.

    Raises:
        Refused: a run is unfinished, two runs have the same row and seed, or they are of different data lists or
            sites (their rows would not be comparable); everything is listed.
    """
    read = _read(runs)
    by_group: dict[tuple[str, Mode], dict[str, list[RunData]]] = {}
    for run in read:
        key = (str(run.about.get("setting", "")), mode_of(run.results))
        by_group.setdefault(key, {}).setdefault(run.row, []).append(run)
    order = sorted(by_group, key=lambda key: (key[0], MODES.index(key[1])))
    groups = [_group(mode, setting, by_group[setting, mode]) for setting, mode in order]
    first = read[0].results
    return Table(
        sites=list(first["sites"]),
        unseen=list(dict.fromkeys(name for run in read for name in run.results.get("unseen", {}))),
        groups=groups,
        notes=notes_of(groups, read),
        datalist=first["hashes"].get("datalist"),
        versions=_versions(read),
        convention=convention_of(read),
    )


def _read(runs: Runs) -> list[RunData]:
    problems = Problems()
    read: list[RunData] = []
    for given in runs:
        with problems.collected():
            read.append(given if isinstance(given, RunData) else _read_one(Path(given)))
    if not runs:
        problems.add("runs", found="none", expected="at least one finished run", mend="name their folders")
    seen: dict[tuple[str, int], Path] = {}
    for run in read:
        key = (run.row, run.seed)
        if key in seen:
            found = f"{key[0]} with seed {key[1]}, as in {seen[key]}"
            problems.add(str(run.folder), found=found, expected="each row and seed once", mend="leave one out")
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


def _read_one(path: Path) -> RunData:
    return RunData.read(path.parent if path.name == "results.json" else path)


def _group(mode: Mode, setting: str, by_row: Mapping[str, Sequence[RunData]]) -> Group:
    rows = [_row(name, runs) for name, runs in by_row.items()]
    rows += _teachers(mode, by_row)
    group = Group(mode, setting, sorted(rows, key=lambda row: row.order))
    floor, ceiling = (found.cells["dice"] if (found := group.of(name)) else Cell() for name in (FLOOR, CEILING))
    made = []
    for row in group.rows:
        cells = dict(row.cells)
        for variant in group.references:
            reference = group.of(variant)
            if reference is not None and reference is not row:
                cells[f"vs:{variant}"] = cells["dice"].minus(reference.cells["dice"])
        gap = share_of_gap(cells["dice"], floor, ceiling) if mode.gap else None
        made.append(replace(row, cells=cells, gap=gap))
    return replace(group, rows=made)


def _row(name: str, runs: Sequence[RunData]) -> Row:
    about, variant = runs[0].about, runs[0].results["variant"]
    cells = _cells({run.seed: run.results for run in runs})
    title = titled(name, variant, str(about.get("title", "")))
    note = str(about.get("note") or (NOTES.get(name, "") if name == variant else ""))
    sweep, place = str(about.get("sweep", "")), int(about.get("place", 0))
    role = str(about.get("as") or variant)
    return Row(name, sorted(cells["dice"].by_seed), cells, None, role, title, note, sweep, place)


def _cells(results: Mapping[int, Mapping[str, Any]]) -> dict[str, Cell]:
    def computed(value_of: Callable[[Mapping[str, Any]], Any]) -> Cell:
        values = {seed: value_of(content) for seed, content in sorted(results.items())}
        return Cell({seed: float(value) for seed, value in values.items() if value is not None})

    def cell(*path: str) -> Cell:
        return computed(lambda content: _at(content, path))

    some = next(iter(results.values()))
    up, down = cell("traffic", "up_bytes_per_round"), cell("traffic", "down_bytes_per_round")
    return {
        **{f"site:{site}": cell("sites", site, "test", "dice") for site in some["sites"]},
        **{f"unseen:{name}": cell("unseen", name, "test", "dice") for name in some.get("unseen", {})},
        "unseen": computed(_unseen),
        **{metric: cell("average", "test", metric) for metric in ("dice", "iou", "hd95")},
        "worst": cell("worst", "test", "dice"),
        "last": cell("models", "last", "average", "test", "dice"),
        "teacher": computed(lambda content: _at(teacher_alone(content), ("average", "test", "dice"))),
        **{key: computed(partial(_cost, key=key)) for key in ("parameters", "milliseconds")},
        "traffic": Cell({seed: (up.by_seed[seed] + down.by_seed.get(seed, 0.0)) / 1e6 for seed in up.by_seed}),
    }


def _unseen(results: Mapping[str, Any]) -> float | None:
    """Mean Dice over all test images of the hospitals that took no part."""
    tests = [splits["test"] for splits in results.get("unseen", {}).values() if "test" in splits]
    skipped = _at(results, ("convention", "empty")) == "skipped"
    dice: float | None = pool(tests, skip_empty=skipped)["dice"]
    return dice


def _cost(results: Mapping[str, Any], *, key: str) -> float | None:
    """Of the largest network at a site: millions of parameters, or milliseconds of an image."""
    found = [cost[key] for cost in results.get("costs", {}).values()]
    return max(found) / (1e6 if key == "parameters" else 1) if found else None


def _at(content: Any, path: Iterable[str]) -> Any:
    for key in path:
        content = content.get(key) if isinstance(content, Mapping) else None
    return content


def _teachers(mode: Mode, by_row: Mapping[str, Sequence[RunData]]) -> list[Row]:
    """The teacher that SAM-Fed used, else that of the first row with an adapted one; and the sites' own, if any had."""
    rows = []
    for role, by_seed in teachers_of(by_row, first=mode.hero).items():
        cells = _cells(by_seed)
        rows.append(Row(role, sorted(cells["dice"].by_seed), cells, None, TEACHER, title_of(role), NOTES[role]))
    return rows


def _versions(runs: Sequence[RunData]) -> dict[str, list[str]]:
    names = sorted({name for run in runs for name in run.results["versions"]})
    return {name: sorted({run.results["versions"].get(name, "unknown") for run in runs}) for name in names}
