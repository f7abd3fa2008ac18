"""FedALA (arXiv 2212.01197): each site learns how to mix its own upper layers with the global ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from monai.engines.utils import IterationEvents
from torch import Tensor

from samfed_monai.core.validators import in_range, require, whole
from samfed_monai.protocol.message import Kind
from samfed_monai.protocol.strategy import TrainerAlgorithm


def mixed(local: Tensor, common: Tensor, weight: Tensor) -> Tensor:
    """Returns ``local + weight (common - local)`` (FedALA, Zhang et al., arXiv 2212.01197), exact at 0 and 1.

    Args:
        local, common: weights of the site and of the server, of the same shape.
        weight: of the same shape, in [0, 1].
    """
    return torch.lerp(local, common, weight)


def learned(weight: Tensor, gradient: Tensor, local: Tensor, common: Tensor, rate: float) -> Tensor:
    """Takes one gradient step of the mixing weights, clipped to [0, 1] (FedALA).

    Each mixing weight affects one element of the mixture, so its gradient is ``gradient (common - local)``.

    Args:
        weight: mixing weights in [0, 1].
        gradient: gradient of the loss with respect to the mixture; all tensors have the same shape.
        local, common: the weights that are mixed.
        rate: step size.
    """
    return (weight - rate * gradient * (common - local)).clamp_(0.0, 1.0)


class AdaptiveMixing(TrainerAlgorithm):
    """FedALA (Zhang et al., arXiv 2212.01197): adaptive local aggregation. FedICRA's form of it is another method.

    In each round the lower layers and all running statistics are replaced by the global ones; the upper layers start
    from ``local + W (global - local)``. Before the local epoch, ``W`` alone is trained on a few batches with the site's
    loss: ``W <- clip(W - rate dL/dW, 0, 1)``. ``W`` starts with ones, which is FedAvg, and is kept from round to round.
    The local epoch then trains the mixture, which is sent. In the first round both sides are equal and nothing is
    mixed. The mean of ``W`` is reported as ``term_mixed``.

    Args:
        upper: part of the trained tensors that is mixed, the last ones in the network's order, in (0, 1].
        rate: step size of ``W`` (FedALA: 1).
        batches: number of batches per round to train ``W`` on.
        first_batches: the same in the first round that mixes; FedALA continues until the loss no longer changes.
        others: arguments of :class:`TrainerAlgorithm`.

    Raises:
        Refused: an option out of its range.

    Example::

        "client_algorithm": {"_target_": "samfed_monai.methods.fedala.AdaptiveMixing", "upper": 0.25, "batches": 4, …}
    """

    def __init__(
        self, *, upper: float = 0.25, rate: float = 1.0, batches: int = 4, first_batches: int = 16, **others: Any
    ) -> None:
        require(
            in_range("client_algorithm#upper", upper, "a part of the layers", above=0, most=1),
            in_range("client_algorithm#rate", rate, "a step size", least=0),
            whole("client_algorithm#batches", batches, "a number of batches", least=0),
            whole("client_algorithm#first_batches", first_batches, "a number of batches", least=0),
        )
        super().__init__(**others)
        self.upper, self.rate, self.batches, self.first_batches = upper, float(rate), batches, first_batches
        self._weights: dict[str, Tensor] = {}
        self._endpoints: dict[str, tuple[Tensor, Tensor]] = {}

    def attach(self, engine: Any) -> None:
        super().attach(engine)
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self._learn)

    def receive(self, round: int, rounds: int, kind: Kind, tensors: Mapping[str, Tensor]) -> dict[str, float]:
        received = self.taken(kind, tensors)
        trained = self.trained()
        count = max(1, int(self.upper * len(trained) + 0.5))  # a half is rounded up
        upper = dict(list(trained.items())[-count:])
        local = {name: weight.detach().clone() for name, weight in upper.items()}
        self.put(received)
        endpoints = {name: (local[name], weight.detach().clone()) for name, weight in upper.items()}
        if all(torch.equal(*pair) for pair in endpoints.values()):
            return {}
        is_first = self._weights.keys() != endpoints.keys()
        if is_first:
            self._weights = {name: torch.ones_like(weight) for name, weight in local.items()}
        return {"mixed": self.learn(round, endpoints, self.first_batches if is_first else self.batches, received)}

    def learn(
        self, round: int, endpoints: Mapping[str, tuple[Tensor, Tensor]], batches: int, received: Mapping[str, Tensor]
    ) -> float:
        """Loads the mixture into the network, trains the mixing weights on some batches and returns their mean.

        Args:
            round: from 0.
            endpoints: by name, the tensors for a mixing weight of 0 and of 1.
            batches: number of batches; 0 leaves the mixing weights unchanged.
            received: the server's tensors; untrained ones (running statistics) are restored afterwards.
        """
        self._mix(endpoints)
        if batches:
            self._endpoints = dict(endpoints)
            trained = self.trained()
            try:
                self.run_extra(round, "mixing", batches)
            finally:
                self._endpoints = {}
            self.put({name: tensor for name, tensor in received.items() if name not in trained})
        total = sum(weight.numel() for weight in self._weights.values())
        return sum(float(weight.sum()) for weight in self._weights.values()) / total

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self._weights)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        device = next(self.network.parameters()).device
        self._weights = {name: tensor.to(device).clone() for name, tensor in state.items()}

    def reset(self) -> None:
        self._weights, self._endpoints = {}, {}

    @torch.no_grad()
    def _mix(self, endpoints: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        trained = self.trained()
        for name, (local, common) in endpoints.items():
            trained[name].copy_(mixed(local, common, self._weights[name]))

    @torch.no_grad()
    def _learn(self, engine: Any) -> None:
        if not self._endpoints:
            return
        trained = self.trained()
        for name, (local, common) in self._endpoints.items():
            gradient = trained[name].grad
            if gradient is not None:
                self._weights[name] = learned(self._weights[name], gradient, local, common, self.rate)
        self._mix(self._endpoints)
        for weight in self.network.parameters():
            weight.grad = None  # the optimizer skips weights without a gradient, so that only W changes
