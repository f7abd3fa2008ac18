"""Krum and Multi-Krum (arXiv 1703.02757): the mean of the sites whose weights are nearest to the others'."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from itertools import combinations

from torch import Tensor

from samfed_monai.core.text import grouped
from samfed_monai.core.validators import require, whole
from samfed_monai.methods.robust import RobustAggregation, SiteUpdate, squared_distance, weighted_mean

logger = logging.getLogger(__name__)


def krum_scores(distances: Mapping[tuple[str, str], float], faulty: int) -> dict[str, float]:
    """Returns the sum of each site's squared distances to its ``S - faulty - 2`` nearest others (paper, section 4).

    Args:
        distances: squared distance of each of the S sites' pairs, one entry per pair.
        faulty: sites that may send anything.
    """
    by_site = grouped((site, distance) for pair, distance in distances.items() for site in pair)
    nearest = len(by_site) - faulty - 2
    return {site: sum(sorted(to_others)[:nearest]) for site, to_others in by_site.items()}


class Krum(RobustAggregation):
    """Multi-Krum (Blanchard et al., arXiv 1703.02757): leaves out whole updates, not single numbers.

    Each site is scored by its distances to the nearest others; the ``keep`` sites with the lowest scores are averaged
    with equal weights, and integers are those of the best one. The paper's guarantee is for ``keep`` 1, Krum itself,
    with at least ``2 faulty + 3`` sites: five for one faulty site, seven for two; fewer sites are refused. If honest
    sites differ much, the one that differs most is left out in every round, and features that only its images show are
    not learned.

    Every pair is compared: ``S (S - 1) / 2`` passes over the model.

    Args:
        faulty: number of sites that may send anything, >= 1.
        keep: number of sites to average; ``None`` is all but ``faulty``.

    Raises:
        Refused: numbers out of range; too few sites.

    Example::

        "strategy": {"_target_": "samfed_monai.methods.krum.Krum", "faulty": 1, "keep": null}
    """

    def __init__(self, *, faulty: int = 1, keep: int | None = None) -> None:
        require(whole("strategy#faulty", faulty, least=1), whole("strategy#keep", keep, least=1, or_null=True))
        self.faulty, self.keep = faulty, keep

    @property
    def least_sites(self) -> int:
        """At least ``2 faulty + 3``, and at least ``faulty + keep``."""
        return max(2 * self.faulty + 3, self.faulty + (self.keep or 1))

    def combine(self, updates: Mapping[str, SiteUpdate]) -> dict[str, Tensor]:
        pairs = combinations(updates, 2)
        distances = {pair: squared_distance(updates[pair[0]].tensors, updates[pair[1]].tensors) for pair in pairs}
        scores = krum_scores(distances, self.faulty)
        order = sorted(updates, key=lambda site: (scores[site], site))
        selected = order[: self.keep or len(updates) - self.faulty]
        logger.info("left out: %s", ", ".join(sorted(order[len(selected) :])))
        combined = {}
        for name, old in self.global_weights.items():
            values = [updates[site].tensors[name] for site in selected]
            is_float = old.is_floating_point()
            combined[name] = weighted_mean(values, [1.0] * len(values)).to(old.dtype) if is_float else values[0].clone()
        return combined
