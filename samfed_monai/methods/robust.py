"""Base class of the Byzantine-robust rules, which collect all updates of a round before they combine them."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from samfed_monai.protocol.message import Kind, Message
from samfed_monai.protocol.strategy import Strategy, require_least

logger = logging.getLogger(__name__)


class SiteUpdate(NamedTuple):
    """One site's weights.

    Args:
        n: number of images that it counts as.
        tensors: tensors by name.
    """

    n: int
    tensors: Mapping[str, Tensor]


class RobustAggregation(Strategy):
    """Keeps all updates until the round ends, then combines them into one model (:meth:`combine`).

    Memory: ``S + 2`` models for S sites (FedAvg: two). With fewer updates than :attr:`least_sites`, a round leaves the
    weights unchanged and logs a warning.
    """

    @property
    def least_sites(self) -> int:
        """Minimum number of updates with which the rule protects: of two that differ, either may be the wrong one."""
        return 3

    @abstractmethod
    def combine(self, updates: Mapping[str, SiteUpdate]) -> dict[str, Tensor]:
        """Returns the new weights, with the names and dtypes of the old ones.

        Args:
            updates: updates by site, in the order of names; at least :attr:`least_sites`.
        """

    def combine_tensors(self, models: Sequence[SiteUpdate], rule: Callable[[str, Tensor], Tensor]) -> dict[str, Tensor]:
        """Returns the new weights: floating-point tensors by ``rule(name, old)``, integers as the lower median."""
        return {
            name: rule(name, old).to(old.dtype) if old.is_floating_point() else lower_median(models, name)
            for name, old in self.global_weights.items()
        }

    def require_sites(self, sites: Sequence[str]) -> None:
        hint = "choose another rule (docs/security.md says what so many sites allow), or FedAvg"
        require_least(sites, self.least_sites, f"{type(self).__name__} to protect", hint)

    def configure(self, round: int) -> dict[str, Message]:
        self._updates: dict[str, SiteUpdate] = {}
        return {site: self.message(site, round, Kind.WEIGHTS, self.global_weights) for site in self.server.sites}

    def accept(self, round: int, site: str, update: Message) -> None:
        self._updates[site] = SiteUpdate(update.n, dict(update.tensors))

    @torch.no_grad()
    def finish(self, round: int) -> None:
        updates = {site: self._updates[site] for site in sorted(self._updates)}
        self._updates = {}
        if len(updates) >= self.least_sites:
            self.global_weights = self.combine(updates)
        elif updates:
            name, least = type(self).__name__, self.least_sites
            logger.warning("round %d: %d answers, %s needs %d: model unchanged", round + 1, len(updates), name, least)


def sorted_values(updates: Iterable[SiteUpdate], name: str) -> Tensor:
    """Returns one tensor of all sites, (S, …), sorted along the first dimension; half precision as float32."""
    return _at_least_float32(torch.stack([update.tensors[name] for update in updates])).sort(dim=0).values


def lower_median(updates: Iterable[SiteUpdate], name: str) -> Tensor:
    """Returns the lower median of integers (BatchNorm's counters), entry by entry: always a value that a site sent."""
    values = sorted_values(updates, name)
    return values[(len(values) - 1) // 2]


def weighted_mean(values: Iterable[Tensor], weights: Iterable[float]) -> Tensor:
    """Returns the running weighted mean: equal values stay equal to the last bit; half precision becomes float32."""
    mean, total = torch.empty(0), 0.0
    for value, weight in zip(map(_at_least_float32, values), weights, strict=True):
        total += weight
        mean = value.clone() if total == weight else torch.lerp(mean, value, weight / total)
    return mean


def _at_least_float32(values: Tensor) -> Tensor:
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def squared_distance(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """Squared L2 distance over all floating-point tensors, summed in double precision."""
    return sum(
        float((tensor.double() - other[name].double()).square().sum())
        for name, tensor in one.items()
        if tensor.is_floating_point()
    )
