"""Notes below the tables of a page of results: different teachers and starts of runs from several machines."""

from __future__ import annotations

from collections.abc import Sequence

from samfed_monai.reports.compare import joined
from samfed_monai.reports.run_data import RunData


def notes_on_teachers(runs: Sequence[RunData]) -> list[str]:
    """The effect of adapting SAM, and rows whose teachers or starts differ from those of other rows."""
    return [*adaptation_notes(runs), *teacher_notes(runs), *start_notes(runs)]


def adaptation_notes(runs: Sequence[RunData]) -> list[str]:
    """The effect of adapting SAM, from the evaluation of the fit: one sentence per fitted teacher.

    If the unadapted SAM was not evaluated, the sentence has only the Dice of the adapted one.
    """
    notes = []
    for run in runs:
        teacher = run.results["teacher"] or {}
        before, after = teacher.get("before") or {}, teacher.get("after") or {}
        known = [name for name in after if after[name] is not None and (not before or before.get(name) is not None)]
        dices = [
            f"{'public images held out' if name == 'held_out' else name} "
            + (f"{before[name]:.3f} to {after[name]:.3f}" if before else f"{after[name]:.3f}")
            for name in known
        ]
        if dices:
            when = "before and after" if before else "after"
            notes.append(f"Dice of SAM {when} its adaptation, at the masks' own size: {', '.join(dices)}.")
    return list(dict.fromkeys(notes))


_RECIPE = ("base", "adapt", "size", "views", "peak", "refine", "self_training_epochs")


def teacher_notes(runs: Sequence[RunData]) -> list[str]:
    """Different adapters of one recipe, since an adapter fitted on another machine differs."""
    fitted: dict[str, dict[str, str]] = {}
    for run in runs:
        about, sha256 = run.results["teacher"], run.results["hashes"].get("teacher")
        if about and sha256:
            recipe = ", ".join(f"{key} {about[key]}" for key in _RECIPE if key in about)
            fitted.setdefault(recipe, {}).setdefault(sha256, f"{run.row}, seed {run.seed}")
    return [
        f"Runs have SAM teachers of one recipe ({recipe}) that were fitted separately "
        f"({joined({sha256[:8]: f'{first}, …' for sha256, first in found.items()})}): part of their difference is "
        "due to the teachers."
        for recipe, found in fitted.items()
        if len(found) > 1
    ]


def start_notes(runs: Sequence[RunData]) -> list[str]:
    """Rows without SAM that start from another adapter's trunk than other rows of the same seed."""
    notes = []
    for seed in sorted({run.seed for run in runs}):
        hashes = {
            run.row: run.results["hashes"] for run in runs if run.seed == seed and run.results["hashes"].get("adapter")
        }
        rows: dict[str, list[str]] = {}
        for row, of in hashes.items():
            rows.setdefault(of["adapter"][:8], []).append(row)
        if len(rows) > 1 and not all(of.get("teacher") for of in hashes.values()):
            given = joined({sha256: ", ".join(sorted(names)) for sha256, names in rows.items()})
            notes.append(
                f"Runs of seed {seed} were given different adapters ({given}), from whose trunk students start: part "
                "of the difference between these rows is due to the start."
            )
    return notes
