"""Which method for which hospitals: paragraphs for the page of methods, with the figures of the records."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from statistics import fmean

from samfed_monai.reports.run_data import RunData
from study.related import figures_of
from study.related_plan import EARLIER, runs_of


def advice(records: str | Path) -> str:
    """Markdown of what to choose between in four situations, and what it brought on polyps.

    Args:
        records: folder of ``related-<part>.jsonl``.

    Raises:
        Refused: a record that cannot be read.
    """
    found = {part: runs_of(part, records) for part in ("polyp", "unseen", "labelled", "weak")}
    figures = {
        "free": figures_of(found["polyp"], found["unseen"]),
        "masks": figures_of(found["labelled"]),
        "weak": figures_of(found["weak"]),
    }

    def row(kind: str, name: str, column: str = "dice") -> str:
        """A method with its mean over seeds, where the records have it; marked where they are of an earlier form."""
        cell, mark = figures[kind].get(name, {}).get(column), "\\*" if name in EARLIER else ""
        return f"`{name}`" if cell is None or cell.mean is None else f"`{name}` {cell.mean:.3f}{mark}"

    def rows(kind: str, *names: str, column: str = "dice") -> str:
        return ", ".join(row(kind, name, column) for name in names)

    organs = _volumes(runs_of("abdomen", records))
    abdomen = ", ".join(f"`{name}` {dice:.3f}" for name, dice in sorted(organs.items(), key=lambda pair: -pair[1]))
    return _ADVICE.format(
        abdomen=_ABDOMEN.format(abdomen=abdomen) if organs else _UNMEASURED,
        masks=rows("masks", "elcfs_labelled", "supervised", "pfedsam", "fedsam", "pfedsam_two_stage"),
        without=rows("free", "samfed", "dp_only"),
        weak=rows("weak", "see", "weak_labels", "fedicra"),
        whole=row("masks", "supervised"),
        modality=rows("free", "samfed", "fedbn", "no_sam", "elcfs", "fedda", "fedgin"),
        seen=rows("free", "no_global_kd", "samfed", "fedsemidg", "no_sam", "elcfs", "dp_only", column="unseen"),
    )


def _volumes(runs: Iterable[RunData]) -> dict[str, float]:
    """Row to its mean Dice of whole volumes over sites, classes and seeds."""
    found: dict[str, list[float]] = {}
    for run in runs:
        for splits in run.results["sites"].values():
            classes = ((splits.get("test") or {}).get("volumes") or {}).get("classes") or {}
            found.setdefault(run.row, []).extend(each["dice"] for each in classes.values() if each["dice"] is not None)
    return {row: fmean(values) for row, values in found.items() if values}


_UNMEASURED = "Not measured on such sites yet (`make related RELATED_PARTS=abdomen`)"
_ABDOMEN = """Dice of whole volumes, means over four organs and both sites, public masks of CT alone, one seed
([by organ](results/related.md)): {abdomen}"""

_ADVICE = """## Which one for you

Figures are mean test Dice of short runs on polyps, four sites, three seeds ([tables and
spread](results/related.md)), with \\* of an earlier form of the method (below). Under 0.01 most differences are within
the spread: measure the two or three that fit you on your own validation images (`samfed compare`).

**Labels at some sites.** All sites of a run learn from the same kind of label, and one without it is refused. Among
sites with masks of their own: {masks}. `supervised` is the simplest; `elcfs_labelled` also sends spectra of images;
`pfedsam` sends a hundredth of the bytes. The other hospitals use that model as unseen sites (`--unseen`). If a site may
publish some labelled images, let these be the public set and all sites learn without labels: {without}.

**Scribbles**, points or boxes at the sites: {weak}; whole masks of the same images: {whole}. `see` needs SAM at every
site, one pass of it for each image and round, and learns one class; `weak_labels` learns several. First compare with
what needs no label of a site, where there are public masks: {without}.

**One modality a site**, such as CT at one and MR at another. {abdomen}; on polyps:
{modality}. Adapt the teacher to public images of both modalities and begin with
`samfed`. What to try then: `fedgin` varies intensities and sends nothing more; `fedbn` and `fedgin_own_norm` keep a
modality's normalisation layers at its site, so that a new hospital has none; `fedda` aligns features; `elcfs` sends
spectra of images.

**One centre unseen.** Dice at the hospital that took no part: {seen}. A method that keeps layers at the sites (`fedbn`,
`fedper`, `fedrep`, `pfedsam`) or a network for each (`ditto`, `apple`) has nothing of that hospital: a site must be
chosen for it ([how](personalised.md)). `cpss_adapt` goes on there from a finished model, without labels.

"""
