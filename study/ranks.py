"""Comparison of rows over blocks: mean ranks with Friedman's test, Nemenyi's critical difference and a figure (Demšar,
JMLR 7, 2006), and all rows against one row (Benavoli, Corani and Mangili, JMLR 17, 2016).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.stats import friedmanchisquare, rankdata, studentized_range, wilcoxon

from samfed_monai.reports.rows import holm
from samfed_monai.reports.style import FAINT, PALETTE, png, quiet, subplots

ALPHA = 0.05
"""Significance level of the tests."""

Scores = Mapping[str, Mapping[Any, float]]
"""Row to block to score; higher is better. A block is a condition that all rows were measured in: a site and a seed."""


@dataclass(frozen=True)
class Ranking:
    """Rows in the order of their mean ranks, with Friedman's test.

    Args:
        ranks: row to mean rank over the blocks, best first; 1 is the best, equal scores share the mean of their ranks.
        blocks: blocks that all of these rows have.
        statistic: Friedman's chi-square, corrected for ties; ``None`` for fewer than three rows or two blocks.
        p: p-value of the test that all rows are equally good.
        critical_difference: two rows differ at :data:`ALPHA` if the difference of their mean ranks is larger (Nemenyi).
        missing: rows that are not ranked, and the number of blocks that they lack.
    """

    ranks: dict[str, float] = field(default_factory=dict)
    blocks: list[Hashable] = field(default_factory=list)
    statistic: float | None = None
    p: float | None = None
    critical_difference: float | None = None
    missing: dict[str, int] = field(default_factory=dict)

    def beyond(self, row: str) -> list[str]:
        """Rows whose mean rank differs from that of ``row`` by more than the critical difference, higher or lower."""
        if self.critical_difference is None:
            return []
        return [name for name, rank in self.ranks.items() if abs(rank - self.ranks[row]) > self.critical_difference]


def ranking(scores: Scores) -> Ranking:
    """Ranks the rows that have all blocks in common (:func:`complete_blocks`) and tests them.

    Args:
        scores: by row and block; a row may lack blocks.
    """
    rows, blocks = complete_blocks(scores)
    if not rows:
        return Ranking(missing=dict.fromkeys(scores, 0))
    table = np.array([[scores[row][block] for row in rows] for block in blocks], dtype=np.float64)
    means = mean_ranks(table)
    order = sorted(range(len(rows)), key=lambda index: (means[index], rows[index]))
    tested = len(rows) > 2 and len(blocks) > 1
    statistic, p = friedman(table) if tested else (None, None)
    missing = {row: sum(block not in of for block in blocks) for row, of in scores.items() if row not in rows}
    return Ranking(
        ranks={rows[index]: means[index] for index in order},
        blocks=blocks,
        statistic=statistic,
        p=p,
        critical_difference=critical_difference(len(rows), len(blocks)) if tested else None,
        missing=missing,
    )


def complete_blocks(scores: Scores) -> tuple[list[str], list[Hashable]]:
    """The largest complete table: rows and blocks such that every row has every block.

    Candidates are the sets of blocks that two rows have in common; the one with the most scores is taken, of equals
    the one with more rows. A row with few seeds is left out if it would exclude further seeds of all other rows.

    Returns:
        Rows in the given order, and blocks in the order of the first row.
    """
    pairs = ((one, other) for one in scores.values() for other in scores.values())
    shared = dict.fromkeys(frozenset(one.keys() & other.keys()) for one, other in pairs)
    found = [([row for row, of in scores.items() if blocks <= of.keys()], blocks) for blocks in shared if blocks]
    if not found:
        return [], []
    rows, blocks = max(found, key=lambda of: (len(of[0]) * len(of[1]), len(of[0])))
    return rows, [block for block in scores[rows[0]] if block in blocks]


def mean_ranks(table: np.ndarray) -> list[float]:
    """Mean rank of each column; the highest score of a line has rank 1, equal scores share the mean of their ranks.

    Args:
        table: ``(blocks, rows)`` float.
    """
    return [float(mean) for mean in rankdata(-table, axis=1).mean(axis=0)]


def friedman(table: np.ndarray) -> tuple[float, float]:
    """Friedman's chi-square, corrected for ties, and its p-value; 0 and 1 if all rows are equal in every block.

    Args:
        table: ``(blocks, rows)`` float with at least three rows and two blocks.
    """
    if (table == table[:, :1]).all():
        return 0.0, 1.0
    statistic, p = friedmanchisquare(*table.T)
    return float(statistic), float(p)


def critical_difference(rows: int, blocks: int) -> float:
    """Nemenyi's critical difference of mean ranks at :data:`ALPHA`, q * sqrt(k (k + 1) / (6 N)) (Demšar 2006, 3.2.2).

    ``q`` is the studentized range of ``rows`` with infinite degrees of freedom over the square root of 2.
    scikit-posthocs and autorank compute the same, but need pandas and statsmodels.

    Args:
        rows: number of rows k, at least 2.
        blocks: number of blocks N, at least 1.
    """
    q = float(studentized_range.ppf(1 - ALPHA, rows, math.inf)) / math.sqrt(2)
    return q * math.sqrt(rows * (rows + 1) / (6 * blocks))


@dataclass(frozen=True)
class Against:
    """Comparison of a row with another one on common blocks.

    Args:
        ahead: number of blocks in which its score is higher.
        blocks: number of common blocks.
        gain: mean difference of the scores.
        p: p-value of Wilcoxon's signed-rank test, two-sided, with Holm's correction for all compared rows.
    """

    ahead: int
    blocks: int
    gain: float
    p: float


def against(scores: Scores, row: str) -> dict[str, Against]:
    """Compares all other rows with ``row``; sorted by p, then by gain.

    Mean ranks, and so Nemenyi's test of two rows, depend on the other rows. This comparison does not (Benavoli,
    Corani and Mangili, JMLR 17, 2016), except for the correction. Without it, p is at least 2 / 2^N for N blocks.

    Args:
        scores: by row and block; rows without common blocks are left out.
        row: the row to compare with.
    """
    base, pairs = scores[row], dict[str, np.ndarray]()
    for name, of in scores.items():
        if name != row and (common := [block for block in base if block in of]):
            pairs[name] = np.array([of[block] - base[block] for block in common], dtype=np.float64)
    raw = {name: float(wilcoxon(gains).pvalue) if gains.any() else 1.0 for name, gains in pairs.items()}
    corrected = dict(zip(raw, holm(list(raw.values())), strict=True))
    order = sorted(pairs, key=lambda name: (raw[name], -pairs[name].mean()))
    return {
        name: Against(int((pairs[name] > 0).sum()), len(pairs[name]), float(pairs[name].mean()), corrected[name])
        for name in order
    }


def ranks_figure(ranked: Ranking) -> bytes:
    """Draws mean ranks with bars of half a critical difference, as PNG; rows differ if their bars do not overlap.

    The shaded area is within one critical difference of the best row. With many rows, this is easier to read than the
    lines over groups in Demšar's figure, and shows the same about the best row.

    Args:
        ranked: with at least one row.
    """
    rows = list(ranked.ranks)
    figure, (ax,) = subplots(height=1.1 + 0.24 * len(rows))
    best, difference = ranked.ranks[rows[0]], ranked.critical_difference
    if difference is not None:
        ax.axvspan(best, best + difference, color=PALETTE[4], alpha=0.18, linewidth=0)
    for place, row in enumerate(rows):
        half = (difference or 0.0) / 2
        rank = ranked.ranks[row]
        ax.plot([rank - half, rank + half], [place, place], color=FAINT, linewidth=1.2)
        ax.plot([rank], [place], marker="o", markersize=5, color=PALETTE[0])
    ax.set_yticks(range(len(rows)), rows)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set_xlabel(f"mean rank over {len(ranked.blocks)} blocks, 1 is the best; bars: half a critical difference")
    quiet(ax, grid="x")
    return png(figure)
