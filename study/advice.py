"""Advice on the choice of a method, for the page of methods, with numbers from the records."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from samfed_monai.core.text import counted
from samfed_monai.reports.rows import Cell
from samfed_monai.reports.run_data import RunData
from study.related import figures_of, is_the_start
from study.related_plan import earlier_form, newest, runs_of, with_more_labels


def advice(records: str | Path) -> str:
    """Markdown of the methods to choose from in four situations, with their results.

    Args:
        records: folder of ``related-<part>.jsonl``.

    Raises:
        Refused: a record that cannot be read.
    """
    parts = ("labelled", "weak", "abdomen_weak", "cardiac_unseen", "polyp", "unseen")
    runs = {part: newest(runs_of(part, records)) for part in parts}
    figures = {part: figures_of(runs[part], runs["unseen"] if part == "polyp" else ()) for part in parts}
    earlier = {(part, run.row) for part in parts for run in runs[part] if earlier_form(run)}

    def row(part: str, name: str, column: str = "dice") -> str:
        """A method with its mean over seeds, if any; marked if of an earlier form, or of fewer seeds than others."""
        cell, mark = figures[part].get(name, {}).get(column, Cell()), _EARLIER if (part, name) in earlier else ""
        fewer = cell.n < max(of.get(column, Cell()).n for of in figures[part].values()) if cell.n else False
        mark += f" ({counted(cell.n, 'seed')})" if fewer else ""
        return f"`{name}`" if cell.mean is None else f"`{name}` {cell.mean:.3f}{mark}"

    def rows(part: str, *names: str, column: str = "dice") -> str:
        """The methods, the best first."""
        means = {name: figures[part].get(name, {}).get(column, Cell()).mean or 0.0 for name in names}
        return ", ".join(row(part, name, column) for name in sorted(names, key=means.__getitem__, reverse=True))

    return _ADVICE.format(
        abdomen=_abdomen(newest(runs_of("abdomen", records))),
        masks=rows("labelled", "elcfs_labelled", "supervised", "pfedsam", "fedsam", "pfedsam_two_stage"),
        without=rows("polyp", "samfed", "dp_only"),
        weak=rows("weak", "see", "weak_labels", "fedicra"),
        organs=rows("abdomen_weak", "weak_labels", "fedicra"),
        whole=row("labelled", "supervised"),
        modality=rows("polyp", "samfed", "fedbn", "no_sam", "elcfs", "fedda", "fedgin"),
        heart=rows("cardiac_unseen", "self_training", "fedda", "fedgin", "samfed", "no_sam", column="unseen"),
        heart_labelled=rows("cardiac_unseen", "fca", "oracle", column="unseen"),
        seeds=counted(figures["cardiac_unseen"].get("samfed", {}).get("unseen", Cell()).n, "seed"),
        seen=rows("polyp", "no_global_kd", "samfed", "fedsemidg", "no_sam", "elcfs", "dp_only", column="unseen"),
    )


def _abdomen(runs: Sequence[RunData]) -> str:
    """Rows by their Dice of whole volumes, separately with and without labels of the sites; notes rows without gain.

    Dice is the mean over the seeds that all rows have in common, if there are any.
    """
    seeds = [set(of["dice"].by_seed) for of in figures_of(runs).values() if of["dice"].n]
    if not seeds:
        return _UNMEASURED
    common = set.intersection(*seeds)
    runs = [run for run in runs if run.seed in common or not common]
    figures = figures_of(runs)
    dice = {row: of["dice"].by_seed for row, of in figures.items() if of["dice"].n}
    means = {row: fmean(dice[row].values()) for row in sorted(dice, key=lambda row: -fmean(dice[row].values()))}
    scored = [(run, dice[run.row][run.seed]) for run in runs if run.seed in dice.get(run.row, {})]
    starts = {_start(run): value for run, value in scored if is_the_start(run)}
    moved = {run.row for run, _ in scored if not is_the_start(run)}
    lower = means.keys() - {run.row for run, value in scored if value >= starts.get(_start(run), 0.0)}
    labelled, earlier = with_more_labels(runs), {run.row for run in runs if earlier_form(run)}

    def listed(with_labels: bool) -> str:
        rows = [
            (
                row,
                f"{mean:.3f}" + (_EARLIER if row in earlier else ""),
                "" if row in moved else _THE_START.format(last=figures[row]["last"].mean),
            )
            for row, mean in means.items()
            if (row in labelled) is with_labels
        ]
        return ", ".join(f"`{row}` {mean}{note}" for row, mean, note in rows)

    text = _ABDOMEN.format(seeds=counted(len({run.seed for run in runs}), "seed")) + listed(False)
    text += f"; with masks of the sites' images: {listed(True)}" if labelled else ""
    return text + (_LOWER.format(rows=", ".join(f"`{row}`" for row in means if row in lower)) if lower else "")


def _start(run: RunData) -> tuple[int, float | None]:
    """Identifies the network at the start of a run: seed, and validation Dice of this network."""
    return run.seed, (run.results.get("against_start") or {}).get("start")


_EARLIER = "\\*"
_UNMEASURED = "Not measured on such sites yet (`make related RELATED_PARTS=abdomen`)"
_ABDOMEN = """Mean Dice of whole volumes over four organs and both sites, with public masks of CT only, {seeds}
([by organ](results/related.md)): """
_THE_START = " (the network at the start; its last round {last:.3f})"
_LOWER = (
    """. Of those that began with that network, {rows} ended below it, since Dice of slices chooses the best round"""
)

_ADVICE = """## Which one for you

Numbers are mean test Dice of short runs on polyps, four sites, three seeds ([tables and spread](results/related.md));
\\* marks an earlier form of the method (below). Most differences under 0.01 are within the spread: compare the two or
three methods that fit you on your own validation images (`samfed compare`).

**Sites with masks.** All sites of a run learn from the same kind of label; a site without one is refused. {masks}.
`supervised` is the simplest; `elcfs_labelled` also sends spectra of images; `pfedsam` sends a hundredth of the bytes.
Hospitals without masks can use the model as unseen sites (`--unseen`). If a site may publish some labelled images, make
them the public set, and all sites learn without labels: {without}.

**Scribbles, points or boxes at the sites.** {weak}; with masks of the same images {whole}. `see` runs SAM at every site
on each image in each round, and learns one class; `weak_labels` learns several. On whole volumes of the abdomen:
{organs}. If there are public masks, first compare with methods that need no label of a site: {without}.

**One modality per site**, such as CT at one and MR at another. {abdomen}. On polyps:
{modality}. Adapt the teacher to public images of both modalities and begin with
`samfed`. Then try `fedgin`, which varies intensities; `fedbn` and `fedgin_own_norm`, which keep normalisation layers at
their site, so a new hospital has none; `fedda`, which aligns features; `elcfs`, which sends spectra of images.

**An unseen hospital.** Dice at the hospital that took no part: {seen}. On whole volumes of the heart, trained without
late enhancement ({seeds}): {heart}; with masks of the sites' images: {heart_labelled}.
Methods that keep layers at the sites (`fedbn`,
`fedper`, `fedrep`, `pfedsam`) or give each a network (`ditto`, `apple`) have none for it ([what it
uses](personalised.md#use-a-sites-own-model)). `cpss_adapt` adapts a finished model there, without labels.

"""
