"""FedAvg: the mean of the sites' weights, weighted by their numbers of private images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from samfed_monai.protocol.message import Kind, Message
from samfed_monai.protocol.statistics import CollectedStatistics, with_statistics
from samfed_monai.protocol.strategy import Exchange, Strategy

_HALF = (torch.float16, torch.bfloat16)


class FedAvg(Strategy):
    """Federated averaging (McMahan et al., arXiv 1602.05629, algorithm 1).

    A running mean, ``m += (n_i / (n_1 + ... + n_i)) (w_i - m)``, is kept in one buffer that is swapped with the global
    weights at the end of the round: two models in memory, whatever the number of sites, and equal weights stay equal
    to the last bit. Integer tensors (BatchNorm's counters) are not averaged but taken from the site with most images,
    the first by name among equals. Half precision is averaged in float32.

    Example::

        "strategy": {"_target_": "samfed_monai.methods.fedavg.FedAvg"}
    """

    exchange = Exchange(mean=True)
    _mean: dict[str, Tensor]
    _largest: tuple[int, str] | None

    def configure(self, round: int) -> dict[str, Message]:
        self._total, self._largest = 0, None
        return {site: self.message(site, round, Kind.WEIGHTS, self.global_weights) for site in self.server.sites}

    @torch.no_grad()
    def accept(self, round: int, site: str, update: Message) -> None:
        if not self._mean:
            self._mean = {name: _buffer(tensor) for name, tensor in self.global_weights.items()}
        total = self._total + update.n
        floats = [name for name, tensor in self._mean.items() if tensor.is_floating_point()]
        buffers = [self._mean[name] for name in floats]
        values = [update.tensors[name].to(mean.dtype) for name, mean in zip(floats, buffers, strict=True)]
        if self._total:
            torch._foreach_lerp_(buffers, values, update.n / total)
        else:
            torch._foreach_copy_(buffers, values)
        self._total = total  # the update counts from here on; nothing below allocates memory
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
        self._total, self._largest = 0, None

    def load_state_dict(self, weights: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
        super().load_state_dict(weights, state)
        self._mean, self._total, self._largest = {}, 0, None


def _buffer(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, dtype=torch.float32 if tensor.dtype in _HALF else tensor.dtype)


class PersonalFedAvg(FedAvg):
    """The server of Ditto and of adaptive mixing: FedAvg, with each site scored on its own network.

    A site's client algorithm (:class:`DittoAlgorithm`, :class:`AdaptiveMixing`) decides how the global weights are used
    and which weights are sent. Unseen hospitals are scored on the mean. Bytes are those of FedAvg.

    Example::

        "strategy": {"_target_": "samfed_monai.methods.fedavg.PersonalFedAvg"}
    """

    exchange = Exchange(own_networks=True, mean=True)

    def configure(self, round: int) -> dict[str, Message]:
        messages = super().configure(round)
        return {site: replace(message, extra={"purpose": "distil"}) for site, message in messages.items()}


class FedAvgWithStatistics(FedAvg):
    """FedAvg, whose server also keeps an image-derived statistic of every site and sends each site those of the others.

    A site receives the others' statistics beside the weights, never its own. Statistics leave a site under the policy
    ``privacy#statistics``. A subclass sets :attr:`statistic` and :attr:`collected`, may override :meth:`with_requests`.
    """

    collected: CollectedStatistics

    def with_requests(self, round: int, messages: dict[str, Message]) -> dict[str, Message]:
        """Adds the request for statistics to a round's messages, for each site until it has sent them once."""
        return self.collected.with_requests(messages)

    def configure(self, round: int) -> dict[str, Message]:
        messages = self.with_requests(round, super().configure(round))
        for site, message in messages.items():
            others = [entries for other, entries in sorted(self.collected.by_site.items()) if other != site]
            joined = {name: torch.cat([entries[name] for entries in others]) for name in self.collected.like if others}
            message.tensors = with_statistics(message.tensors, joined)
        return messages

    def expected(self, site: str) -> Mapping[str, Tensor] | None:
        return self.collected.expected(site, super().expected(site))

    def accept(self, round: int, site: str, update: Message) -> None:
        super().accept(round, site, self.collected.taken(site, update))

    def state_dict(self) -> dict[str, Tensor]:
        return self.collected.state_dict()

    def load_state_dict(self, weights: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
        super().load_state_dict(weights, state)
        self.collected.load_state_dict(state)
