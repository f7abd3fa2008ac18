"""The SAM teachers behind a comparison as rows of their own, over the same images as the other rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from samfed_monai.metrics import pool, worst
from samfed_monai.reports.run_data import RunData
from samfed_monai.reports.variant_names import OWN_TEACHER, TEACHER


def teacher_alone(results: Mapping[str, Any]) -> dict[str, Any] | None:
    """A run's teacher in the layout of a model's test tables: ``sites``, ``average``, ``worst``, ``unseen``.

    Its average and its worst site are over the sites that trained, as those of the run's models are; hospitals that
    took no part stand apart, also in results that did not tell the two apart.

    Args:
        results: of ``results.json``.

    Returns:
        ``None`` where the run had no teacher, or nobody scored it.
    """
    teacher = results.get("teacher") or {}
    everywhere = {**teacher.get("sites", {}), **teacher.get("unseen", {})}
    tests = {site: {"test": splits["test"]} for site, splits in everywhere.items() if splits.get("test", {}).get("n")}
    here = {site: splits for site, splits in tests.items() if site in results["sites"]}
    if not here:
        return None
    skip_empty = results.get("convention", {}).get("empty") == "skipped"
    return {
        "sites": {site: here.get(site, {}) for site in results["sites"]},
        "average": {"test": pool([splits["test"] for splits in here.values()], skip_empty=skip_empty)},
        "worst": {"test": worst({site: splits["test"] for site, splits in here.items()})},
        "unseen": {site: splits for site, splits in tests.items() if site not in here},
        **({"costs": {"teacher": teacher}} if "milliseconds" in teacher else {}),
        **({"convention": results["convention"]} if "convention" in results else {}),
    }


def teachers_of(by_row: Mapping[str, Sequence[RunData]], *, first: str) -> dict[str, dict[int, dict[str, Any]]]:
    """The teachers that rows of a group had: the server's, and the sites' own where a row had such.

    Args:
        by_row: runs by the name of their row.
        first: the row whose teacher stands for all, where it had one.

    Returns:
        ``teacher`` and ``own_teacher`` to :func:`teacher_alone` by seed.
    """
    names = sorted(by_row, key=lambda name: (name != first, by_row[name][0].about.get("place", 0), name))
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for name in names:
        if by_row[name][0].results["variant"] == "unadapted_sam":
            continue
        alone = {run.seed: tables for run in by_row[name] if (tables := teacher_alone(run.results)) is not None}
        own = any("self_training_epochs" in run.results["teacher"] for run in by_row[name] if run.seed in alone)
        role = OWN_TEACHER if own else TEACHER
        if alone and role not in found:
            found[role] = alone
    return found


def adaptation_notes(runs: Sequence[RunData]) -> list[str]:
    """What adapting SAM brought, from the exam of the fit: a sentence for every teacher that was fitted.

    Where SAM as it comes was not examined, the Dice of the adapted one alone.
    """
    notes = []
    for run in runs:
        teacher = run.results["teacher"] or {}
        before, after = teacher.get("before") or {}, teacher.get("after") or {}
        known = [name for name in after if after[name] is not None and (not before or before.get(name) is not None)]
        told = [
            f"{'public images held out' if name == 'held_out' else name} "
            + (f"{before[name]:.3f} to {after[name]:.3f}" if before else f"{after[name]:.3f}")
            for name in known
        ]
        if told:
            when = "before and after" if before else "after"
            notes.append(f"Dice of SAM {when} its adaptation, at the masks' own size: {', '.join(told)}.")
    return list(dict.fromkeys(notes))
