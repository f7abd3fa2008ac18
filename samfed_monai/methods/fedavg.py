"""FedAvg: the mean of the sites' weights, weighted by their numbers of private images; its variants."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from samfed_monai.core.errors import Problem, Refused
from samfed_monai.core.moving_average import move_average
from samfed_monai.protocol.message import Envelope, Kind
from samfed_monai.protocol.strategy import Exchange, Strategy, norm, shortened

if TYPE_CHECKING:
    from torch import Tensor


logger = logging.getLogger(__name__)

_HALF = (torch.float16, torch.bfloat16)


class FedAvg(Strategy):
    """Federated averaging (McMahan et al., arXiv 1602.05629, algorithm 1).

    The mean is kept as it grows, ``m += (n_i / (n_1 + ... + n_i)) (w_i - m)``, in one buffer that changes places with
    the global weights when the round is finished: two models in memory, whatever the number of sites, and equal
    weights stay equal to the last bit. Integer tensors (BatchNorm's counters) are never averaged: they are those of
    the site with most images, the first by name among equals. Half precision is averaged in float32.

    Its guard (:attr:`Server.guard`) limits the norm of updates (fault 39), for one read more of each.

    Example::

        "strategy": {"_target_": "samfed_monai.methods.fedavg.FedAvg"}
    """

    def __init__(self) -> None:
        self._mean: dict[str, Tensor] = {}
        self._total = 0
        self._largest: tuple[int, str] | None = None
        self._norm: float | None = None

    def configure(self, round: int) -> dict[str, Envelope]:
        self._total, self._largest, self._norm = 0, None, None
        return {site: self._message(site, round, Kind.WEIGHTS, self.global_weights) for site in self.server.sites}

    @torch.no_grad()
    def accept(self, round: int, site: str, update: Envelope) -> None:
        share = 1.0
        if self.server.guard:
            self._norm = norm(self.global_weights) if self._norm is None else self._norm
            share = self.server.guard.share(update.tensors, self.global_weights, self._norm)
            if share < 1:
                logger.warning("round %d: the update of %s was shortened to %.2g of its step", round + 1, site, share)
        if not self._mean:
            self._mean = {name: _buffer(tensor) for name, tensor in self.global_weights.items()}
        total = self._total + update.n
        floats = [name for name, tensor in self._mean.items() if tensor.is_floating_point()]
        buffers = [self._mean[name] for name in floats]
        values = [
            shortened(self.global_weights[name], update.tensors[name].to(mean.dtype), share)
            for name, mean in zip(floats, buffers, strict=True)
        ]
        if self._total:
            torch._foreach_lerp_(buffers, values, update.n / total)
        else:
            torch._foreach_copy_(buffers, values)
        self._total = total  # from here on the answer counts: all that needs memory is done
        rank = (-update.n, site)
        if self._largest is None or rank < self._largest:
            self._largest = rank
            for name in self._mean.keys() - set(floats):
                self._mean[name].copy_(update.tensors[name])

    @torch.no_grad()
    def finish(self, round: int) -> None:
        if not self._total:
            return
        mean, old = self._mean, self.global_weights
        for name, tensor in old.items():
            if tensor.dtype in _HALF:
                mean[name] = mean[name].to(tensor.dtype)
        self.global_weights = mean
        self._mean = {} if any(tensor.dtype in _HALF for tensor in old.values()) else old
        self._total, self._largest, self._norm = 0, None, None

    def load_state_dict(self, weights: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
        super().load_state_dict(weights, state)
        self._mean, self._total, self._largest, self._norm = {}, 0, None, None


def _buffer(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, dtype=torch.float32 if tensor.dtype in _HALF else tensor.dtype)


_CURRENT = "current."


class AveragedFedAvg(FedAvg):
    """Sites train from FedAvg's mean; what is evaluated, stored and given out is a moving average of those means.

    Single rounds of a few steps on small batches scatter around where training is going; their average does not
    (Polyak and Juditsky 1992; Izmailov et al. 2018, arXiv 1803.05407, for networks; ours in a federation). What the
    sites are sent is FedAvg's to the bit, so that rounds learn as they would without. Of the first rounds it is the
    plain mean, ``d = min(decay, r / (r + 1))`` in round r counted from 0, lest the start weigh for ever.

    Integer tensors are those of the last round. It keeps a third model in memory.

    Args:
        decay: part of the old average that is kept in a round, in [0, 1); 0 is FedAvg.

    Raises:
        Refused: a decay outside [0, 1).

    Example::

        "strategy": {"_target_": "samfed_monai.methods.fedavg.AveragedFedAvg", "decay": 0.7}
    """

    def __init__(self, *, decay: float = 0.7) -> None:
        super().__init__()
        if isinstance(decay, bool) or not isinstance(decay, (int, float)) or not 0 <= decay < 1:
            raise Refused([Problem("strategy#decay", found=repr(decay), expected="a number in [0, 1)")])
        self.decay = decay
        self._current: dict[str, Tensor] = {}
        self._average: dict[str, Tensor] = {}

    def configure(self, round: int) -> dict[str, Envelope]:
        if self._current:  # from here to finish() everything is FedAvg's, on the weights that sites train from
            self._average, self.global_weights, self._current = self.global_weights, self._current, {}
        return super().configure(round)

    @torch.no_grad()
    def finish(self, round: int) -> None:
        super().finish(round)
        old, self._current = self._average, self.global_weights
        kept = min(self.decay, round / (round + 1)) if old else 0.0
        self.global_weights = {name: (old or self._current)[name].clone() for name in self._current}
        move_average(list(self.global_weights.values()), list(self._current.values()), kept)
        self._average = {}

    def state_dict(self) -> dict[str, Tensor]:
        return {_CURRENT + name: tensor for name, tensor in self._current.items()}

    def load_state_dict(self, weights: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
        super().load_state_dict(weights, state)
        current = {name: state[_CURRENT + name] for name in weights if _CURRENT + name in state}
        self._current, self._average = {name: tensor.clone() for name, tensor in current.items()}, {}


class PersonalFedAvg(FedAvg):
    """The server of Ditto and of adaptive mixing: the mean of what sites send; each site is scored on its own network.

    What a site does with the global weights, and what it answers, is its sharing's affair (:class:`DittoSharing`,
    :class:`AdaptiveMixing`). Hospitals that take no part are scored on the mean. Bytes are those of FedAvg.

    Example::

        "strategy": {"_target_": "samfed_monai.methods.fedavg.PersonalFedAvg"}
    """

    exchange = Exchange(own_networks=True)

    def configure(self, round: int) -> dict[str, Envelope]:
        messages = super().configure(round)
        return {site: replace(message, extra={"purpose": "distil"}) for site, message in messages.items()}
