"""One sentence per method with its results on the data of the related systems, for the page of methods."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean

from samfed_monai.config.variants import methods
from samfed_monai.core.text import counted
from samfed_monai.reports.rows import FLOOR
from samfed_monai.reports.style import as_difference
from study.related_plan import NO_ROW, earlier_form, gains_by_site, newest, runs_of, site_scores

REFERENCE = {"polyp": "no_sam", "labelled": "supervised", "weak": "weak_labels"}
"""Part of the related systems to its reference method; this method itself is compared with the public set alone."""

_OF = {"polyp": "sites without labels", "labelled": "sites with masks", "weak": "sites with scribbles"}


def measured(records: str | Path) -> dict[str, str]:
    """Name of each method to its Dice and its gains and losses against another method, or to why it has no row.

    Args:
        records: folder of ``related-<part>.jsonl``.

    Raises:
        Refused: a record that cannot be read.
    """
    texts: dict[str, list[str]] = {}
    known = methods()
    for part, reference in REFERENCE.items():
        runs = newest(runs_of(part, records))
        scores, earlier = site_scores(runs), {run.row: what for run in runs if (what := earlier_form(run))}
        for row, blocks in scores.items():
            other, base = reference if row != reference else FLOOR, known[row].base if row in known else None
            text = f"{_OF[part]}, {_compared(blocks, scores.get(other, {}), other)}"
            if base not in (None, other) and (gains := gains_by_site(blocks, scores.get(str(base), {}))):
                text += f"; {as_difference(fmean(gains.values()))} against `{base}`, on which it builds"
            text += f"; the runs are of an earlier form: {what}" if (what := earlier.get(row)) else ""
            texts.setdefault(row, []).append(text)
    without = {row: f"not measured: {why}" for row, why in NO_ROW.items()}
    return without | {row: "; ".join(texts) for row, texts in texts.items()}


def _compared(blocks: Mapping[tuple[str, int], float], others: Mapping[tuple[str, int], float], other: str) -> str:
    """Dice of a row, and its difference to another on common sites and seeds; all sites have the same weight."""
    seeds = {seed for _, seed in blocks}
    text = f"{counted(len(seeds), 'seed')}: mean over the sites {fmean(blocks.values()):.3f}"
    mean = gains_by_site(blocks, others)
    if not mean:
        return text
    text += f", {as_difference(fmean(mean.values()))} against `{other}`"
    for word, of in (
        ("higher", {site: gain for site, gain in mean.items() if round(gain, 3) > 0}),
        ("lower", {site: gain for site, gain in mean.items() if round(gain, 3) < 0}),
    ):
        where = ", ".join(f"{site} {as_difference(of[site])}" for site in sorted(of, key=lambda site: -abs(of[site])))
        text += f"; {word} at {where or 'no site'}"
    return text
