"""Base class of rules that learn the sites' weights in the mean, instead of using their numbers of images."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from samfed_monai.methods.fedavg import FedAvg
from samfed_monai.protocol.message import Message, message_refused
from samfed_monai.protocol.strategy import Exchange

logger = logging.getLogger(__name__)

_WEIGHTS, _IMAGES = "site_weights", "site_images"
_COUNT_OF_1 = 2**40  # a weight of 1 as FedAvg's integer count; the rounding error is about 1e-12


class LearnedWeights(FedAvg):
    """FedAvg whose weights are learned from a number that each site reports, such as the mean of a loss or a gap.

    A round is averaged with the weights learned in the rounds before, so that updates are averaged as they arrive and
    memory stays at two models; the round's numbers set the weights of the next one (:meth:`next_weights`), unless a
    rule keeps the updates (:class:`.GeneralisationAware`). Weights start as shares of all images, or equal. A site
    without an update counts with the mean of the others' numbers. Reported numbers are trusted: a site that overstates
    its number gains weight, up to the ``largest_share`` of the guard (:meth:`.UpdateGuard.capped`), which is off by
    default.

    Args:
        number: name of the deciding number: a term of the bundle, or a value that it records, ``<name>_…``; their mean.
        equal_start: whether sites start with equal weights instead of weights by their images.
    """

    exchange = Exchange(reads_term_means=True)
    _weights: dict[str, float]

    def __init__(self, *, number: str, equal_start: bool) -> None:
        self.number, self.equal_start = number, equal_start

    @abstractmethod
    def next_weights(self, round: int, weights: Tensor, numbers: Tensor) -> Tensor | None:
        """Returns the weights of the next round; ``None`` keeps those of this one.

        Args:
            round: from 0.
            weights, numbers: (N,) float64, in the order of :attr:`Server.sites`.

        Returns:
            (N,) float64 on the simplex.
        """

    @property
    def weights(self) -> Mapping[str, float]:
        """Weights of the next round by site; empty as long as they are the shares of all images."""
        return self._weights

    def configure(self, round: int) -> dict[str, Message]:
        self._numbers: dict[str, float] = {}
        return super().configure(round)

    def accept(self, round: int, site: str, update: Message) -> None:
        number = self.number_of(update)
        super().accept(round, site, replace(update, n=_as_count(self._weights[site]) if self._weights else update.n))
        self._numbers[site], self._images[site] = number, update.n

    def finish(self, round: int) -> None:
        self.average(round)
        self.learn(round)

    def average(self, round: int) -> None:
        """Makes the mean of the accepted updates the global model."""
        super().finish(round)

    def number_of(self, update: Message) -> float:
        """Returns the number that an update reports.

        Raises:
            MessageRefused: it reports none.
        """
        name = f"term_{self.number}"
        if name not in update.metrics:
            expected = f"the mean of the term {self.number!r}, which decides this site's weight"
            hint = "set strategy -> number to an enabled term of the bundle"
            raise message_refused(f"message -> metrics -> {name}", "nothing", expected, hint)
        return float(update.metrics[name])

    def learn(self, round: int) -> None:
        """Updates the weights by the numbers of the round so far; without any, they are unchanged."""
        if not self._numbers:
            return
        sites = self.server.sites
        mean = sum(self._numbers.values()) / len(self._numbers)
        numbers = torch.tensor([self._numbers.get(site, mean) for site in sites], dtype=torch.float64)
        weights = self.next_weights(round, self._current_weights(), numbers)
        if weights is not None:
            self._weights = self._capped(dict(zip(sites, weights.tolist(), strict=True)))

    def state_dict(self) -> dict[str, Tensor]:
        sites, state = self.server.sites, super().state_dict()
        if self._images:
            state[_IMAGES] = torch.tensor([self._images.get(site, 0) for site in sites])
        if self._weights:
            state[_WEIGHTS] = torch.tensor([self._weights[site] for site in sites], dtype=torch.float64)
        return state

    def load_state_dict(self, weights: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
        super().load_state_dict(weights, state)
        sites, images, learned = self.server.sites, state.get(_IMAGES), state.get(_WEIGHTS)
        pairs = () if images is None else zip(sites, images.tolist(), strict=True)
        self._images: dict[str, int] = {site: n for site, n in pairs if n}
        self._weights = dict.fromkeys(sites, 1 / len(sites)) if self.equal_start else {}
        if learned is not None:
            self._weights = dict(zip(sites, learned.tolist(), strict=True))

    def _capped(self, learned: dict[str, float]) -> dict[str, float]:
        if self.server.guard is None:
            return learned
        weights = self.server.guard.capped(learned)
        text = "%s has a learned weight of %.3g, limited to %.3g in the mean (job#update_guard#largest_share)"
        for site, weight in weights.items():
            if weight < learned[site]:
                logger.info(text, site, learned[site], weight)
        return weights

    def _current_weights(self) -> Tensor:
        sites, images = self.server.sites, self._images
        if self._weights:
            return torch.tensor([self._weights[site] for site in sites], dtype=torch.float64)
        mean = sum(images.values()) / len(images)
        counts = torch.tensor([float(images.get(site, mean)) for site in sites], dtype=torch.float64)
        return counts / counts.sum()


def _as_count(weight: float) -> int:
    """Converts a weight in [0, 1] to FedAvg's integer count; at least 1, so that no round has a total of 0."""
    return max(1, round(weight * _COUNT_OF_1))
