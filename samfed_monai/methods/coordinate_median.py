"""The coordinate-wise median (arXiv 1803.01498): each weight is the median of the sites'."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from samfed_monai.methods.all_answers import AllAnswers, Answer, middle_count, sorted_values


def median(values: Tensor) -> Tensor:
    """The middle of (S, …) values that ascend along the first dimension; between the middle two where S is even."""
    sites = len(values)
    return torch.lerp(values[(sites - 1) // 2], values[sites // 2], 0.5)


class CoordinateMedian(AllAnswers):
    """Coordinate-wise median (Yin et al., arXiv 1803.01498, algorithm 1, option I).

    Whatever fewer than half of the sites send, every number lies between two that others sent: one of three or four
    sites, two of five or six, three of seven or eight. The number of images does not weigh, so that a site gains
    nothing by a large one, and a site with many images loses. Where honest sites differ much the middle leans to none
    of them, and the model learns more slowly. Integers are the lower median.

    Example::

        "strategy": {"_target_": "samfed_monai.methods.coordinate_median.CoordinateMedian"}
    """

    def combine(self, answers: Mapping[str, Answer]) -> dict[str, Tensor]:
        given, combined = list(answers.values()), {}
        for name, old in self.global_weights.items():
            floats = old.is_floating_point()
            combined[name] = median(sorted_values(given, name)).to(old.dtype) if floats else middle_count(given, name)
        return combined
