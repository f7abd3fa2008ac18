"""What a reader of a comparison must know about its runs: unlike seeds, rounds, conventions, and missing rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from samfed_monai.reports.modes import CEILING, FLOOR
from samfed_monai.reports.numbers import DEFAULT_CONVENTION
from samfed_monai.reports.rows import Cell, Group
from samfed_monai.reports.run_data import RunData
from samfed_monai.reports.teacher_rows import adaptation_notes

_RECIPE = ("base", "adapt", "size", "views", "peak", "refine", "self_training_epochs")


def notes_of(groups: Sequence[Group], runs: Sequence[RunData]) -> list[str]:
    """Sentences below the table, computed from the runs."""
    notes = []
    seeds = {row.name: ", ".join(map(str, row.seeds)) for group in groups for row in group.rows}
    if len(set(seeds.values())) > 1:
        notes.append(f"Rows have different seeds ({_listed(seeds)}); differences and shares use the seeds in common.")
    rounds = {run.row: ", ".join(sorted({str(r.results["rounds"]) for r in runs if r.row == run.row})) for run in runs}
    if len({rounds[run.row] for run in runs if run.results["variant"] != FLOOR}) > 1:
        notes.append(f"Runs have different numbers of rounds ({_listed(rounds)}).")
    if convention_of(runs) is None:
        told = {run.row: " / ".join(_convention(run.results).values()) for run in runs}
        notes.append(f"Rows count HD95 and empty masks differently ({_listed(told)}): their HD95 cannot be compared.")
    notes += [
        *_unlike_notes(runs),
        *_unscored_notes(runs),
        *adaptation_notes(runs),
        *_silent_teacher_notes(runs),
        *_teacher_notes(runs),
    ]
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
    """Rows whose seeds were not asked for the same: a record took runs of two settings."""
    asked: dict[str, set[str]] = {}
    for run in runs:
        asked.setdefault(run.row, set()).update({run.asked} - {""})
    mixed = sorted(row for row, hashes in asked.items() if len(hashes) > 1)
    if not mixed:
        return []
    return [
        f"Seeds of one row were run with different settings or bundles ({', '.join(mixed)}): its mean and spread are "
        "over both."
    ]


def _unscored_notes(runs: Sequence[RunData]) -> list[str]:
    """Runs whose average is over fewer test images than another's: a site was away when the models were scored."""
    counts = {f"{run.row}, seed {run.seed}": run.results["average"].get("test", {}).get("n", 0) for run in runs}
    most = max(counts.values(), default=0)
    fewer = {run: f"{n} of {most}" for run, n in counts.items() if n < most}
    if not fewer:
        return []
    return [
        f"Some runs were scored on fewer test images than others ({_listed(fewer)}): a site gave no scores there, so "
        "averages, worst sites and verdicts are not over the same images."
    ]


def _silent_teacher_notes(runs: Sequence[RunData]) -> list[str]:
    """Rows whose runs did not ask for the teacher's scores, so that it is no row beside them."""
    silent = ", ".join(sorted({run.row for run in runs if (run.results["teacher"] or {}).get("score") is False}))
    return [f"The SAM teacher was not scored where `score` of `teacher.json` is false ({silent})."] if silent else []


def _teacher_notes(runs: Sequence[RunData]) -> list[str]:
    """Teachers of one recipe that are not one: an adapter fitted on another machine is another adapter."""
    fitted: dict[str, dict[str, str]] = {}
    for run in runs:
        about, sha256 = run.results["teacher"], run.results["hashes"].get("teacher")
        if about and sha256:
            recipe = ", ".join(f"{key} {about[key]}" for key in _RECIPE if key in about)
            fitted.setdefault(recipe, {}).setdefault(sha256, f"{run.row}, seed {run.seed}")
    return [
        f"Runs have SAM teachers of one recipe ({recipe}) that were fitted apart "
        f"({_listed({sha256[:8]: f'{first}, …' for sha256, first in found.items()})}): a part of what lies between "
        "them is the teachers'."
        for recipe, found in fitted.items()
        if len(found) > 1
    ]


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


def _listed(values: Mapping[str, str]) -> str:
    return "; ".join(f"{name}: {value}" for name, value in values.items())
