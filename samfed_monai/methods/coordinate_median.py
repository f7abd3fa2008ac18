"""The coordinate-wise median (arXiv 1803.01498): each weight is the median of the sites'."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from samfed_monai.methods.robust import RobustAggregation, SiteUpdate, sorted_values


def median(values: Tensor) -> Tensor:
    """Returns the median of (S, …) values sorted along the first dimension: for an even S, the middle two's mean."""
    sites = len(values)
    return torch.lerp(values[(sites - 1) // 2], values[sites // 2], 0.5)


class CoordinateMedian(RobustAggregation):
    """Coordinate-wise median (Yin et al., arXiv 1803.01498, algorithm 1, option I).

    Whatever fewer than half of the sites send (one of three or four, two of five or six, three of seven or eight), each
    weight stays between two that others sent. Sites count equally: a site gains nothing by a large number of images,
    and one that does have many loses influence. Where honest sites differ much, the model learns more slowly. Integers
    are the lower median.

    Example::

        "strategy": {"_target_": "samfed_monai.methods.coordinate_median.CoordinateMedian"}
    """

    def combine(self, updates: Mapping[str, SiteUpdate]) -> dict[str, Tensor]:
        models = list(updates.values())
        return self.combine_tensors(models, lambda name, old: median(sorted_values(models, name)))
