"""Comparison of runs: a table with means and spreads over seeds, and notes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from samfed_monai.config.parse import MISSING, flat, lookup
from samfed_monai.core.errors import Problems
from samfed_monai.core.text import clipped, grouped
from samfed_monai.metrics import pool
from samfed_monai.reports.rows import (
    CEILING,
    FLOOR,
    MODES,
    NOTES,
    TEACHER,
    VARIANTS,
    Cell,
    Group,
    Mode,
    Row,
    mode_of,
    title_of,
    with_tests,
)
from samfed_monai.reports.run_data import RunData, scored, teacher_alone
from samfed_monai.reports.style import DEFAULT_CONVENTION
from samfed_monai.results import fall_of


def _notes(groups: Sequence[Group], runs: Sequence[RunData]) -> list[str]:
    """Returns the sentences below the table."""
    rows, notes = [row for group in groups for row in group.rows], list[str]()
    seeds = {row.name: ", ".join(map(str, row.seeds)) for row in rows}
    if len(set(seeds.values())) > 1:
        notes.append(f"Rows have different seeds ({joined(seeds)}); differences and shares use the seeds in common.")
    notes += [*_setting_notes(runs), *_scoring_notes(runs)]
    if not any(row.cells["dice"].n for row in rows):
        return notes  # without a test image there is neither a gap nor a spread
    for group in groups:
        notes += [f"{group.label}: {note}" if len(groups) > 1 else note for note in _gap_notes(group)]
    if any(len(row.seeds) < 3 for row in rows):
        notes.append("Fewer than three seeds: the spread is not reliable.")
    return notes


def _setting_notes(runs: Sequence[RunData]) -> Iterator[str]:
    by_row = _by_row(runs)
    rounds = {row: ", ".join(sorted({str(run.results["rounds"]) for run in of_row})) for row, of_row in by_row.items()}
    if len({rounds[run.row] for run in runs if run.results["variant"] != FLOOR}) > 1:
        yield f"Runs have different numbers of rounds ({joined(rounds)})."
    if _convention(runs) is None:
        counted_as = joined({run.row: " / ".join(_convention_of(run).values()) for run in runs})
        yield f"Rows count HD95 and empty masks differently ({counted_as}): their HD95 cannot be compared."
    settings = {row: [_options_of(run) for run in of_row if run.run.get("config")] for row, of_row in by_row.items()}
    sizes = {row: {str(each["image_size"]) for each in runs if "image_size" in each} for row, runs in settings.items()}
    if len(set[str]().union(*sizes.values())) > 1:
        found = joined({row: ", ".join(sorted(some)) for row, some in sizes.items() if some})
        yield f"Runs have different image sizes ({found}): their HD95, in pixels, cannot be compared."
    mixed_rows = {row for row, of_row in settings.items() if any(each != of_row[0] for each in of_row)}
    mixed_rows |= {row for row, of_row in by_row.items() if len({run.settings_hash for run in of_row} - {""}) > 1}
    if mixed_rows:
        what = f"Seeds of one row were run with different settings or bundles ({', '.join(sorted(mixed_rows))})"
        yield f"{what}: its mean and spread cover both."


def _scoring_notes(runs: Sequence[RunData]) -> Iterator[str]:
    scores = {f"{run.row}, seed {run.seed}": _scored_images(run.results) for run in runs}
    for images, consequence in _CONSEQUENCES.items():
        counts = {run: numbers[images] for run, numbers in scores.items() if images in numbers}
        most = max(counts.values(), default=0)
        if fewer := joined({run: f"{n} of {most}" for run, n in counts.items() if n < most}):
            text = f"Some runs were scored on fewer {images} than others ({fewer}): a site gave no scores there, so"
            yield f"{text} {consequence}."
    falls = {f"{run.row}, seed {run.seed}": fall_of(run.results["models"]) for run in runs}
    if fallen := joined({run: "{:.3f}, then {:.3f}".format(*both) for run, both in falls.items() if both}):
        yield f"Training made some networks worse after the round that the table shows (Dice, best and last: {fallen})."
    if unscored := ", ".join(sorted({run.row for run in runs if (run.results["teacher"] or {}).get("score") is False})):
        yield f"The SAM teacher was not scored where `score` of `teacher.json` is false ({unscored})."


_CONSEQUENCES = {
    "test images": "averages, worst sites and verdicts are not of the same images",
    "test images of hospitals that took no part": "their average is missing, or is of other images",
}
"""Kinds of scored images, with the consequence if runs differ in their number. Runs of methods without a model for
unseen hospitals have no such images."""


def _scored_images(results: Mapping[str, Any]) -> dict[str, int]:
    numbers = [results["average"].get("test", {}).get("n", 0)]
    if results.get("unseen"):
        numbers.append(sum(each["n"] for each in _unseen(results).values()))
    return dict(zip(_CONSEQUENCES, numbers, strict=False))


def _unseen(results: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Returns the test scores of unseen hospitals that have any."""
    return {name: splits["test"] for name, splits in results.get("unseen", {}).items() if scored(splits)}


def _convention(runs: Sequence[RunData]) -> dict[str, str] | None:
    """Returns the convention of all runs for HD95 and empty masks; ``None`` if they differ."""
    first, *others = map(_convention_of, runs)
    return first if all(convention == first for convention in others) else None


def _convention_of(run: RunData) -> dict[str, str]:
    return {**DEFAULT_CONVENTION, **run.results.get("convention", {})}


def _gap_notes(group: Group) -> list[str]:
    if not group.mode.gap:
        return []
    floor, ceiling = group.dice_of(FLOOR), group.dice_of(CEILING)
    notes = [
        f"There is no {name} row, so the share of the gap closed cannot be computed."
        for name, found in ((FLOOR, floor), (CEILING, ceiling))
        if not found.n
    ]
    room = ceiling.minus(floor)
    if room.n and sum(room.by_seed.values()) <= 0:
        notes.append(f"{CEILING} does not lead {FLOOR}: the share of the gap closed is undefined.")
    return notes


def joined(values: Mapping[str, str]) -> str:
    return "; ".join(f"{name}: {value}" for name, value in values.items())


def _by_row(runs: Iterable[RunData]) -> dict[str, list[RunData]]:
    return grouped((run.row, run) for run in runs)


Runs = Sequence[str | Path | RunData]


@dataclass(frozen=True)
class Table:
    """A comparison: groups of rows in the order of :data:`samfed_monai.reports.rows.VARIANTS`.

    Keys of cells are ``site:<name>`` (test Dice of a site), ``unseen:<name>`` (test Dice of an unseen hospital),
    ``unseen`` (over all images of unseen hospitals, for runs with scores of all of them), ``dice``, ``iou``, ``hd95``
    (pixels) and ``worst`` (Dice) of the selected model, ``last`` (average Dice of the last model), ``teacher`` (average
    Dice of the run's teacher alone), ``traffic`` (megabytes per round, both directions, all sites), ``parameters``
    (millions, of the largest network at a site), ``vs:<row>`` (average Dice minus that of the row with the same seed),
    and, for sites without masks, ``between:<site>`` and ``between`` (Dice between the masks of student and teacher on
    their own images, and over all of these), if the runs' folders have the tables.

    ``costs`` are costs per image of networks measured in one run: ``run`` (row and seed of that run) and ``networks``,
    by name ``parameters`` (count), ``milliseconds`` and, except in older runs, ``memory_bytes``.
    """

    sites: list[str]
    unseen: list[str]
    groups: list[Group]
    notes: list[str]
    datalist: str | None = None
    versions: dict[str, list[str]] = field(default_factory=dict)
    convention: dict[str, str] | None = None
    costs: dict[str, Any] | None = None

    @property
    def rows(self) -> list[Row]:
        """Rows of all groups."""
        return [row for group in self.groups for row in group.rows]

    @property
    def scored(self) -> bool:
        """Whether any row was measured on test images with masks."""
        return self.has("dice")

    def label(self, group: Group) -> str:
        """Returns the start of a group's headings: its label if there are several groups."""
        return f"{group.label}: " if len(self.groups) > 1 else ""

    def has(self, key: str) -> bool:
        """Whether any row has a value in that column."""
        return any(row.cells.get(key, Cell()).n for row in self.rows)


def comparison_table(runs: Runs) -> Table:
    """Compares finished runs.

    Rows are grouped by setting (from a file of rows) and by how their sites learn (``MODES``). The share of the gap
    closed is ``(row - dp_only) / (oracle - dp_only)`` of average test Dice, within a group, over the seeds that all
    three rows have; it is omitted if the oracle does not lead.

    Args:
        runs: run folders, their ``results.json`` files, or runs already read. Runs with the same row and seed become
            separate rows, named after their folders, with notes on the options that differ.

    Raises:
        Refused: a run is unfinished or given twice, or runs have different data lists or sites, so that they cannot be
            compared; all problems are listed.
    """
    data = read_runs(runs)
    unseen = list(dict.fromkeys(name for run in data for name in _unseen(run.results)))
    by_group = grouped(((str(run.about.get("setting", "")), MODES.index(mode_of(run.results))), run) for run in data)
    groups = [_group(MODES[mode], setting, _by_row(part), unseen) for (setting, mode), part in sorted(by_group.items())]
    first = data[0].results
    packages = sorted({name for run in data for name in run.results["versions"]})
    return Table(
        sites=list(first["sites"]),
        unseen=unseen,
        groups=groups,
        notes=_notes(groups, data),
        datalist=first["hashes"].get("datalist"),
        versions={name: sorted({run.results["versions"].get(name, "unknown") for run in data}) for name in packages},
        convention=_convention(data),
        costs=_costs(data),
    )


def read_runs(runs: Runs) -> list[RunData]:
    """Reads the runs of a comparison and names their rows; arguments and errors as :func:`comparison_table`."""
    problems, read, seen = Problems(), list[RunData](), set[Path]()
    for given in runs:
        with problems.collected():
            read.append(given if isinstance(given, RunData) else RunData.read(given))
    if not runs:
        problems.add("runs", found="none", expected="at least one finished run", hint="name their folders")
    for run in read:
        folder, first = run.folder.resolve(), read[0]
        if folder in seen:
            problems.add(str(run.folder), found="this run twice", expected="each run once", hint="remove one")
        seen.add(folder)
        data, expected = ((of["hashes"].get("datalist"), sorted(of["sites"])) for of in (run.results, first.results))
        for what, value, wanted in zip(("data list", "sites"), data, expected, strict=True):
            if value != wanted:
                where, hint = f"{run.folder} -> {what}", f"compare runs with the same {what}"
                problems.add(where, found=str(value), expected=f"{wanted} as in {first.folder}", hint=hint)
    problems.refuse_if_any()
    return _with_unique_rows(read)


def _with_unique_rows(runs: Sequence[RunData]) -> list[RunData]:
    """Splits runs with the same row and seed into rows named after their folders, with notes on differing options.

    Runs with the same settings and different seeds stay one row. If a name is taken, the old row name is appended.
    """
    renamed, by_row = dict[Path, RunData](), _by_row(runs)
    taken = {*VARIANTS, *by_row}
    for row, same_row in by_row.items():
        if len({run.seed for run in same_row}) == len(same_row):
            continue
        rows = _by_options(same_row)
        folders = [members[0].folder.resolve() for members in rows]
        parent = os.path.commonpath([folder.parent for folder in folders])
        names = list[str]()
        for name in (folder.relative_to(parent).as_posix() for folder in folders):
            while name in (taken - {row}).union(names):
                name += f" ({row})"
            names.append(name)
        taken.update(names)
        for place, (name, members) in enumerate(zip(names, rows, strict=True)):
            note = _differences(rows[0][0], members[0], than=names[0]) if place else ""
            for run in members:
                about = {**run.about, "row": name, "title": f"{_row_title(run)}, {name}", "note": note, "place": place}
                renamed[run.folder] = replace(run, about=about)
    return [renamed.get(run.folder, run) for run in runs]


def _by_options(runs: Sequence[RunData]) -> list[list[RunData]]:
    """Divides runs into rows of the same options and different seeds."""
    rows: list[list[RunData]] = []
    for run in runs:
        for members in rows:
            if _options_of(members[0]) == _options_of(run) and run.seed not in {each.seed for each in members}:
                members.append(run)
                break
        else:
            rows.append([run])
    return rows


def _row_title(run: RunData) -> str:
    """Returns the title of a run's row: its own title, else the variant's if it has its name, else its name."""
    default = title_of(run.row) if run.row == run.results["variant"] else run.row
    return str(run.about.get("title") or default)


def _options_of(run: RunData) -> dict[str, Any]:
    """Returns all recorded options of a run by id; they include neither the seed nor paths."""
    config = run.run.get("config") or {}
    return flat({**{key: value for key, value in config.items() if key != "client"}, **config.get("client", {})})


def _differences(first: RunData, other: RunData, *, than: str) -> str:
    """Returns a note on the options in which a run differs from the first one."""
    before, after = _options_of(first), _options_of(other)
    differing = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
    values = {key: [clipped(json.dumps(of.get(key)), 61) for of in (after, before)] for key in differing}
    changes = [f"{key} {now} instead of {then}" for key, (now, then) in values.items()]
    return f"unlike {than}: {', '.join(changes)}" if changes else f"the options of {than}"


def _group(mode: Mode, setting: str, by_row: Mapping[str, Sequence[RunData]], unseen: Sequence[str]) -> Group:
    rows = [*(_row(name, runs, unseen) for name, runs in by_row.items()), *_teacher_rows(mode, by_row, unseen)]
    group = Group(mode, setting, sorted(rows, key=lambda row: row.order))
    floor, ceiling, compared = group.dice_of(FLOOR), group.dice_of(CEILING), list[Row]()
    for row in group.rows:
        cells = dict(row.cells)
        for variant in group.references:
            if group.of(variant) is not row:
                cells[f"vs:{variant}"] = cells["dice"].minus(group.dice_of(variant))
        gap = share_of_gap(cells["dice"], floor, ceiling) if mode.gap else None
        compared.append(replace(row, cells=cells, gap=gap))
    return with_tests(replace(group, rows=compared), by_row)


def share_of_gap(dice: Cell, floor: Cell, ceiling: Cell) -> float | None:
    """Returns ``(row - floor) / (ceiling - floor)`` over common seeds; ``None`` if the ceiling does not lead."""
    seeds = dice.by_seed.keys() & floor.by_seed.keys() & ceiling.by_seed.keys()
    room = sum(ceiling.by_seed[seed] - floor.by_seed[seed] for seed in seeds)
    return sum(dice.by_seed[seed] - floor.by_seed[seed] for seed in seeds) / room if room > 0 else None


def _row(name: str, runs: Sequence[RunData], unseen: Sequence[str]) -> Row:
    about, variant = runs[0].about, runs[0].results["variant"]
    cells = {**_cells({run.seed: run.results for run in runs}, unseen), **_agreement_cells(runs)}
    note = str(about.get("note") or (NOTES.get(name, "") if name == variant else ""))
    sweep, place = str(about.get("sweep", "")), int(about.get("place", 0))
    seeds = sorted(cells["dice"].by_seed) or sorted({run.seed for run in runs})
    return Row(name, seeds, cells, None, str(about.get("as") or variant), _row_title(runs[0]), note, sweep, place)


def _cells(results: Mapping[int, Mapping[str, Any]], unseen: Sequence[str]) -> dict[str, Cell]:
    def cell_of(value_of: Callable[[Mapping[str, Any]], Any]) -> Cell:
        values = {seed: value_of(content) for seed, content in sorted(results.items())}
        return Cell({seed: float(value) for seed, value in values.items() if value not in (None, MISSING)})

    def unseen_dice(content: Mapping[str, Any]) -> Any:
        found = _unseen(content)
        return pool(found.values())["dice"] if len(found) == len(unseen) else None

    def cell(*path: str) -> Cell:
        return cell_of(lambda content: lookup(content, path))

    any_results = next(iter(results.values()))
    return {
        **{f"site:{site}": cell("sites", site, "test", "dice") for site in any_results["sites"]},
        **{f"unseen:{name}": cell("unseen", name, "test", "dice") for name in unseen},
        "unseen": cell_of(unseen_dice),
        **{metric: cell("average", "test", metric) for metric in ("dice", "iou", "hd95")},
        "worst": cell("worst", "test", "dice"),
        "last": cell("models", "last", "average", "test", "dice"),
        "teacher": cell_of(lambda content: lookup(teacher_alone(content), ("average", "test", "dice"))),
        "parameters": cell_of(_parameters),
        "traffic": cell_of(_traffic),
    }


def _agreement_cells(runs: Sequence[RunData]) -> dict[str, Cell]:
    """Returns the Dice between student and teacher on images without masks, by site and over all of them."""
    by_seed = {run.seed: by_site for run in runs if (by_site := run.student_and_teacher())}
    cells = {
        f"between:{site}": Cell({seed: fmean(by_site[site]) for seed, by_site in by_seed.items() if site in by_site})
        for site in runs[0].sites
    }
    overall = {seed: fmean([dice for dices in by_site.values() for dice in dices]) for seed, by_site in by_seed.items()}
    return {**{key: cell for key, cell in cells.items() if cell.n}, "between": Cell(overall)}


def _parameters(results: Mapping[str, Any]) -> float | None:
    """Returns the parameters of the largest network at a site, in millions; ``None`` if none was measured."""
    found = [cost["parameters"] for name, cost in results.get("costs", {}).items() if name != TEACHER]
    return max(found) / 1e6 if found else None


def _traffic(results: Mapping[str, Any]) -> float | None:
    """Returns the megabytes of a round, both directions."""
    traffic = results.get("traffic", {})
    up, down = traffic.get("up_bytes_per_round"), traffic.get("down_bytes_per_round", 0.0)
    return None if up is None else (up + down) / 1e6


def _costs(runs: Sequence[RunData]) -> dict[str, Any] | None:
    """Returns the costs of the run that measured most networks (at least two), as times differ between runs."""
    run = max(runs, key=lambda each: len(each.results.get("costs", {})))
    found = run.results.get("costs", {})
    return {"run": f"{run.row}, seed {run.seed}", "networks": found} if len(found) > 1 else None


def _teacher_rows(mode: Mode, by_row: Mapping[str, Sequence[RunData]], unseen: Sequence[str]) -> list[Row]:
    """Returns the row of SAM-Fed's teacher, else of the first row with an adapted teacher; none without a teacher."""
    for name in sorted(by_row, key=lambda name: (name != mode.hero, by_row[name][0].about.get("place", 0), name)):
        scores = {run.seed: tables for run in by_row[name] if (tables := teacher_alone(run.results)) is not None}
        if scores and by_row[name][0].results["variant"] != "unadapted_sam":
            cells = _cells(scores, unseen)
            seeds = sorted(cells["dice"].by_seed)
            return [Row(TEACHER, seeds, cells, None, TEACHER, title_of(TEACHER), NOTES[TEACHER])]
    return []
