"""Norm clipping (arXiv 1911.07963): limits each site's step to the running median of the sites' norms."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from statistics import median_low

import torch
from torch import Tensor

from samfed_monai.core.validators import in_range, require, whole
from samfed_monai.methods.robust import RobustAggregation, SiteUpdate, squared_distance, weighted_mean
from samfed_monai.protocol.guard import shortened

logger = logging.getLogger(__name__)

_MEDIANS = "median_lengths"


class NormClipping(RobustAggregation):
    """FedAvg of steps that are shortened to a running median of their lengths.

    Norm thresholding (Sun et al., arXiv 1911.07963, section 4) with a threshold from the data: the limit is ``factor``
    times the median over the last ``window`` rounds of the lower median of the sites' lengths ``|w_i - w|``. It limits
    a site that sends a step a hundred times too long. It does **not** limit a wrong step of ordinary length (flipped
    signs, wrong labels), which keeps its share of the mean as in FedAvg. Two sites are enough. Honest sites with longer
    steps than half of the others are shortened as well.

    The mean is weighted by numbers of images, as in FedAvg: see ``largest_share`` of the guard. Integers are the lower
    median.

    Args:
        factor: factor of the median, > 0.
        window: number of rounds of the running median, >= 1.

    Raises:
        Refused: numbers out of range.

    Example::

        "strategy": {"_target_": "samfed_monai.methods.norm_clipping.NormClipping", "factor": 1.0, "window": 5}
    """

    _medians: list[float]

    def __init__(self, *, factor: float = 1.0, window: int = 5) -> None:
        require(
            in_range("strategy#factor", factor, above=0),
            whole("strategy#window", window, "a whole number of rounds", least=1),
        )
        self.factor, self.window = float(factor), window

    @property
    def least_sites(self) -> int:
        """2: the shorter of two steps limits the other."""
        return 2

    def combine(self, updates: Mapping[str, SiteUpdate]) -> dict[str, Tensor]:
        old = self.global_weights
        lengths = {site: math.sqrt(squared_distance(old, update.tensors)) for site, update in updates.items()}
        self._medians = [*self._medians, median_low(lengths.values())][-self.window :]
        limit = self.factor * median_low(self._medians)
        shares = {site: 1.0 if length <= limit else limit / length for site, length in lengths.items()}
        for site, share in shares.items():
            if share < 1:
                logger.info("%s: a step of %.3g was shortened to %.3g", site, lengths[site], limit)
        models = list(updates.values())

        def mean_of_steps(name: str, tensor: Tensor) -> Tensor:
            values = [shortened(tensor, updates[site].tensors[name], share) for site, share in shares.items()]
            return weighted_mean(values, [update.n for update in models])

        return self.combine_tensors(models, mean_of_steps)

    def state_dict(self) -> dict[str, Tensor]:
        return {_MEDIANS: torch.tensor(self._medians, dtype=torch.float64)}

    def load_state_dict(self, weights: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
        super().load_state_dict(weights, state)
        self._medians = state[_MEDIANS].tolist() if _MEDIANS in state else []
