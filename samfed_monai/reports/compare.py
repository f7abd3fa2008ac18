"""Comparison of rows: one table of means and spreads over seeds, with its notes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from samfed_monai.config.parse import flat
from samfed_monai.core.errors import Problems
from samfed_monai.metrics import pool
from samfed_monai.reports.paired import paired_tests
from samfed_monai.reports.rows import (
    CEILING,
    FLOOR,
    MODES,
    NOTES,
    OWN_TEACHER,
    TEACHER,
    Cell,
    Group,
    Mode,
    Row,
    mode_of,
    share_of_gap,
    title_of,
    titled,
)
from samfed_monai.reports.run_data import RunData, teacher_alone
from samfed_monai.reports.style import DEFAULT_CONVENTION


def notes_of(groups: Sequence[Group], runs: Sequence[RunData]) -> list[str]:
    """Sentences below the table, computed from the runs."""
    notes = []
    seeds = {row.name: ", ".join(map(str, row.seeds)) for group in groups for row in group.rows}
    if len(set(seeds.values())) > 1:
        notes.append(f"Rows have different seeds ({listed(seeds)}); differences and shares use the seeds in common.")
    rounds = {run.row: ", ".join(sorted({str(r.results["rounds"]) for r in runs if r.row == run.row})) for run in runs}
    if len({rounds[run.row] for run in runs if run.results["variant"] != FLOOR}) > 1:
        notes.append(f"Runs have different numbers of rounds ({listed(rounds)}).")
    if convention_of(runs) is None:
        counted_as = {run.row: " / ".join(_convention(run.results).values()) for run in runs}
        notes.append(
            f"Rows count HD95 and empty masks differently ({listed(counted_as)}): their HD95 cannot be compared."
        )
    notes += [
        *_unlike_notes(runs),
        *_unscored_notes(runs),
        *_silent_teacher_notes(runs),
    ]
    if not any(run.results["average"].get("test", {}).get("n") for run in runs):
        return notes  # without a test image there is neither a gap nor a spread
    for group in groups:
        notes += [f"{group.label}: {note}" if len(groups) > 1 else note for note in _gap_notes(group)]
    if any(len(row.seeds) < 3 for group in groups for row in group.rows):
        notes.append("Fewer than three seeds: the spread is not to be relied on.")
    return notes


def convention_of(runs: Sequence[RunData]) -> dict[str, str] | None:
    """How all runs counted HD95 and empty masks; ``None`` where they differ."""
    found = [_convention(run.results) for run in runs]
    return found[0] if all(convention == found[0] for convention in found) else None


def _convention(results: Mapping[str, Any]) -> dict[str, str]:
    return {**DEFAULT_CONVENTION, **results.get("convention", {})}


def _unlike_notes(runs: Sequence[RunData]) -> list[str]:
    """Rows whose seeds have different settings: a record took runs of two."""
    mixed = sorted({run.row for run in runs if len({one.asked for one in runs if one.row == run.row} - {""}) > 1})
    return [
        f"Seeds of one row were run with different settings or bundles ({', '.join(mixed)}): its mean and spread are "
        "over both."
    ] * bool(mixed)


def _unscored_notes(runs: Sequence[RunData]) -> list[str]:
    """Runs whose average is over fewer test images than another's: a site was away when the models were scored."""
    counts = {f"{run.row}, seed {run.seed}": run.results["average"].get("test", {}).get("n", 0) for run in runs}
    most = max(counts.values(), default=0)
    fewer = listed({run: f"{n} of {most}" for run, n in counts.items() if n < most})
    return [
        f"Some runs were scored on fewer test images than others ({fewer}): a site gave no scores there, so averages, "
        "worst sites and verdicts are not over the same images."
    ] * bool(fewer)


def _silent_teacher_notes(runs: Sequence[RunData]) -> list[str]:
    """Rows whose runs did not ask for the teacher's scores, so that it is no row beside them."""
    silent = ", ".join(sorted({run.row for run in runs if (run.results["teacher"] or {}).get("score") is False}))
    return [f"The SAM teacher was not scored where `score` of `teacher.json` is false ({silent})."] if silent else []


def _gap_notes(group: Group) -> list[str]:
    if not group.mode.gap:
        return []
    floor, ceiling = (row.cells["dice"] if (row := group.of(name)) else Cell() for name in (FLOOR, CEILING))
    notes = [
        f"There is no {name} row, so the share of the gap closed cannot be given."
        for name, found in ((FLOOR, floor), (CEILING, ceiling))
        if not found.n
    ]
    room = ceiling.minus(floor)
    if room.n and sum(room.by_seed.values()) <= 0:
        notes.append(f"{CEILING} does not lead {FLOOR}: the share of the gap closed is not defined.")
    return notes


def listed(values: Mapping[str, str]) -> str:
    return "; ".join(f"{name}: {value}" for name, value in values.items())


Runs = Sequence[str | Path | RunData]


@dataclass(frozen=True)
class Costs:
    """What one image costs networks that were measured one after the other.

    Args:
        run: row and seed of the run that measured them.
        networks: name to ``parameters`` (count), ``milliseconds`` and, but in older runs, ``memory_bytes``.
    """

    run: str
    networks: dict[str, dict[str, float]]


@dataclass(frozen=True)
class Table:
    """A comparison: groups of rows in the order of :data:`samfed_monai.reports.rows.VARIANTS`.

    Cells have the keys ``site:<name>`` (test Dice of a site), ``unseen:<name>`` (of a hospital that took no part),
    ``unseen`` (of all their images), ``dice``, ``iou``, ``hd95`` (pixels) and ``worst`` (Dice) of the selected model,
    ``last`` (average Dice of the last model), ``teacher`` (average Dice of the run's teacher alone), ``traffic``
    (megabytes per round, both directions, all sites), ``parameters`` (millions, of the largest network at a
    site), ``vs:<row>`` (average Dice minus that of the row with the same seed), and of sites without masks
    ``between:<site>`` and ``between`` (Dice between the masks of student and teacher on their own images, and over all
    of these), where the runs' folders have the tables.
    """

    sites: list[str]
    unseen: list[str]
    groups: list[Group]
    notes: list[str]
    datalist: str | None = None
    versions: dict[str, list[str]] = field(default_factory=dict)
    convention: dict[str, str] | None = None
    costs: Costs | None = None

    @property
    def rows(self) -> list[Row]:
        """Rows of all groups."""
        return [row for group in self.groups for row in group.rows]

    def row(self, name: str) -> Row:
        """The row of that name, the first group's; raises ``KeyError`` where there is none."""
        return {row.name: row for row in reversed(self.rows)}[name]

    @property
    def scored(self) -> bool:
        """Whether any row was measured on test images with masks."""
        return self.has("dice")

    def label(self, group: Group) -> str:
        """What a heading of a group begins with: its label, where there are several groups."""
        return f"{group.label}: " if len(self.groups) > 1 else ""

    def has(self, key: str) -> bool:
        """Whether any row has a value in that column."""
        return any(row.cells.get(key, Cell()).n for row in self.rows)


def comparison_table(runs: Runs) -> Table:
    """The comparison of finished runs.

    Rows are grouped by setting (a file of rows may name one) and by how their sites learn (``MODES``). The share of
    the gap closed is ``(row - dp_only) / (oracle - dp_only)`` of average test Dice, with the two rows of the same
    group, over the seeds that all three have; it is left out where the oracle does not lead.

    Args:
        runs: run folders, their ``results.json`` files, or runs that were read. Two of one row and seed become two
            rows with the names of their folders, whose notes name the options that differ.

    Raises:
        Refused: a run is unfinished or there twice, or they are of different data lists or
            sites (their rows would not be comparable); everything is listed.
    """
    read = read_runs(runs)
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
        costs=_side_by_side(read),
    )


def read_runs(runs: Runs) -> list[RunData]:
    """The runs of a comparison, read, and named as its rows; arguments and refusals of :func:`comparison_table`."""
    problems = Problems()
    read: list[RunData] = []
    for given in runs:
        with problems.collected():
            read.append(given if isinstance(given, RunData) else _read_one(Path(given)))
    if not runs:
        problems.add("runs", found="none", expected="at least one finished run", hint="name their folders")
    seen: set[Path] = set()
    for run in read:
        folder = run.folder.resolve()
        if folder in seen:
            problems.add(str(run.folder), found="it twice", expected="each run once", hint="leave one out")
        seen.add(folder)
        for what, value, first in (
            ("data list", run.results["hashes"].get("datalist"), read[0].results["hashes"].get("datalist")),
            ("sites", sorted(run.results["sites"]), sorted(read[0].results["sites"])),
        ):
            if value != first:
                hint = f"compare runs of one {what}"
                problems.add(
                    f"{run.folder} -> {what}", found=str(value), expected=f"{first} as in {read[0].folder}", hint=hint
                )
    problems.refuse_if_any()
    return _named_apart(read)


def _named_apart(runs: Sequence[RunData]) -> list[RunData]:
    """Runs of one row and seed become rows of their own, by the names of their folders, with the options that differ.

    Seeds of one setting stay one row, where each is there once.
    """
    by_row: dict[str, list[RunData]] = {}
    for run in runs:
        by_row.setdefault(run.row, []).append(run)
    named: dict[Path, RunData] = {}
    for row, those in by_row.items():
        if len({run.seed for run in those}) == len(those):
            continue
        rows: list[list[RunData]] = []
        for run in those:
            alike = (of for of in rows if _setting_of(of[0]) == _setting_of(run))
            members = next((of for of in alike if run.seed not in {each.seed for each in of}), None)
            if members is None:
                rows.append([run])
            else:
                members.append(run)
        folders = [members[0].folder.resolve() for members in rows]
        above = os.path.commonpath([folder.parent for folder in folders])
        names = [folder.relative_to(above).as_posix() for folder in folders]
        for place, (name, members) in enumerate(zip(names, rows, strict=True)):
            note = _differences(rows[0][0], members[0], than=names[0]) if place else ""
            for run in members:
                title = f"{titled(row, run.results['variant'], str(run.about.get('title', '')))}, {name}"
                about = {**run.about, "row": name, "title": title, "note": note, "place": place}
                named[run.folder] = replace(run, about=about)
    return [named.get(run.folder, run) for run in runs]


def _setting_of(run: RunData) -> dict[str, Any]:
    """Every option of a run but its seed and its paths, by id."""
    config = run.run.get("config") or {}
    return flat({**{key: value for key, value in config.items() if key != "client"}, **config.get("client", {})})


def _differences(first: RunData, other: RunData, *, than: str) -> str:
    """The options in which a run differs from the first of its kind, in words."""
    before, after = _setting_of(first), _setting_of(other)
    differing = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
    changes = [f"{key} {_value(after.get(key))} instead of {_value(before.get(key))}" for key in differing]
    return f"unlike {than}: {', '.join(changes)}" if changes else f"the options of {than}"


def _value(value: Any) -> str:
    """JSON of a value, at most 60 characters of it."""
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


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
    group = replace(group, rows=made)
    return replace(group, paired=paired_tests(group, by_row))


def _row(name: str, runs: Sequence[RunData]) -> Row:
    about, variant = runs[0].about, runs[0].results["variant"]
    cells = {**_cells({run.seed: run.results for run in runs}), **_between(runs)}
    title = titled(name, variant, str(about.get("title", "")))
    note = str(about.get("note") or (NOTES.get(name, "") if name == variant else ""))
    sweep, place = str(about.get("sweep", "")), int(about.get("place", 0))
    role = str(about.get("as") or variant)
    seeds = sorted(cells["dice"].by_seed) or sorted({run.seed for run in runs})
    return Row(name, seeds, cells, None, role, title, note, sweep, place)


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
        "parameters": computed(_parameters),
        "traffic": Cell({seed: (up.by_seed[seed] + down.by_seed.get(seed, 0.0)) / 1e6 for seed in up.by_seed}),
    }


def _between(runs: Sequence[RunData]) -> dict[str, Cell]:
    """Dice between student and teacher on images without masks, by site and over all of them."""
    by_seed = {run.seed: run.student_and_teacher() for run in runs}
    sites = [site for site in runs[0].sites if any(site in found for found in by_seed.values())]
    cells = {
        f"between:{site}": Cell({seed: fmean(found[site]) for seed, found in by_seed.items() if site in found})
        for site in sites
    }
    every = {
        seed: fmean([dice for dices in found.values() for dice in dices]) for seed, found in by_seed.items() if found
    }
    return {**cells, "between": Cell(every)}


def _unseen(results: Mapping[str, Any]) -> float | None:
    """Mean Dice over all test images of the hospitals that took no part."""
    tests = [splits["test"] for splits in results.get("unseen", {}).values() if "test" in splits]
    skipped = _at(results, ("convention", "empty")) == "skipped"
    dice: float | None = pool(tests, skip_empty=skipped)["dice"]
    return dice


def _parameters(results: Mapping[str, Any]) -> float | None:
    """Those of the largest network at a site, in millions; ``None`` where none was measured."""
    found = [cost["parameters"] for name, cost in results.get("costs", {}).items() if name != TEACHER]
    return max(found) / 1e6 if found else None


def _side_by_side(runs: Sequence[RunData]) -> Costs | None:
    """The costs of the run that measured most networks, two at least; times of different runs cannot be compared."""
    run = max(runs, key=lambda each: len(each.results.get("costs", {})))
    found = run.results.get("costs", {})
    return Costs(f"{run.row}, seed {run.seed}", found) if len(found) > 1 else None


def _at(content: Any, path: Iterable[str]) -> Any:
    for key in path:
        content = content.get(key) if isinstance(content, Mapping) else None
    return content


def _teachers(mode: Mode, by_row: Mapping[str, Sequence[RunData]]) -> list[Row]:
    """The teacher that SAM-Fed used, else that of the first row with an adapted one; and the sites' own, if any had."""
    names = sorted(by_row, key=lambda name: (name != mode.hero, by_row[name][0].about.get("place", 0), name))
    rows: dict[str, Row] = {}
    for name in names:
        scores = {run.seed: tables for run in by_row[name] if (tables := teacher_alone(run.results)) is not None}
        own = any("self_training_epochs" in run.results["teacher"] for run in by_row[name] if run.seed in scores)
        role = OWN_TEACHER if own else TEACHER
        if scores and role not in rows and by_row[name][0].results["variant"] != "unadapted_sam":
            cells = _cells(scores)
            rows[role] = Row(role, sorted(cells["dice"].by_seed), cells, None, TEACHER, title_of(role), NOTES[role])
    return list(rows.values())


def _versions(runs: Sequence[RunData]) -> dict[str, list[str]]:
    names = sorted({name for run in runs for name in run.results["versions"]})
    return {name: sorted({run.results["versions"].get(name, "unknown") for run in runs}) for name in names}
