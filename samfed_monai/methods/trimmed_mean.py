"""The coordinate-wise trimmed mean (arXiv 1803.01498): without each coordinate's largest and smallest values."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from samfed_monai.core.validators import in_range, require
from samfed_monai.methods.robust import RobustAggregation, SiteUpdate, sorted_values, weighted_mean


def trimmed(sites: int, trim: float) -> int:
    """Returns how many of ``sites`` numbers to drop at each end: the part ``trim``, rounded up, but not all numbers."""
    return min(math.ceil(round(trim * sites, 9)), (sites - 1) // 2)  # rounded, as 0.28 * 25 is a little more than 7


class TrimmedMean(RobustAggregation):
    """Coordinate-wise trimmed mean (Yin et al., arXiv 1803.01498, algorithm 1, option II).

    For each weight the ``ceil(trim S)`` largest and smallest values are dropped and the rest is averaged. That many
    sites may send anything: each weight stays between two that others sent. Sites count equally, whatever their number
    of images. Integers are the lower median.

    Args:
        trim: part of the sites to drop at each end, in (0, 0.5): a quarter is one of three or four sites and two of
            five to eight.

    Raises:
        Refused: ``trim`` is out of range.

    Example::

        "strategy": {"_target_": "samfed_monai.methods.trimmed_mean.TrimmedMean", "trim": 0.25}
    """

    def __init__(self, *, trim: float = 0.25) -> None:
        require(in_range("strategy#trim", trim, "a part of the sites", above=0, below=0.5))
        self.trim = float(trim)

    def combine(self, updates: Mapping[str, SiteUpdate]) -> dict[str, Tensor]:
        models, dropped = list(updates.values()), trimmed(len(updates), self.trim)

        def trimmed_mean(name: str, old: Tensor) -> Tensor:
            kept = sorted_values(models, name)[dropped : len(models) - dropped]
            return weighted_mean(kept, [1.0] * len(kept))

        return self.combine_tensors(models, trimmed_mean)
