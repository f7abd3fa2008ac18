"""Ditto (arXiv 2012.04221): each site trains the global network and a personal one, which is pulled towards it.

The server's side is ``PersonalFedAvg`` in ``fedavg.py``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from samfed_monai.core import training_state
from samfed_monai.handlers.term import Term
from samfed_monai.protocol.message import Kind
from samfed_monai.protocol.strategy import TrainerAlgorithm, trained_weights


class AnchoredTerm(Term):
    """``lambda / 2 |v - w|^2`` over trained parameters, ``w`` given by :meth:`set_anchor` (Ditto, h_k).

    Unlike ``ProximalTerm`` it does not use the weights that a round starts with: a personal network starts from its
    own and is pulled towards the global ones. Zero before :meth:`set_anchor`.

    Args:
        mu: Ditto's lambda. 0 is local training; the larger, the nearer to the global network.
        name: name under which ``1/2 |v - w|^2`` is logged.

    Example::

        {"_target_": "samfed_monai.methods.ditto.AnchoredTerm", "name": "ditto", "mu": 0.1}
    """

    unlabelled = False

    def __init__(self, *, mu: float = 0.1, name: str = "anchored") -> None:
        super().__init__(name=name, weight=mu)
        self._anchor: dict[str, Tensor] = {}

    def set_anchor(self, weights: Mapping[str, Tensor] | None) -> None:
        """Pulls the parameters named in ``weights`` towards these values; ``None`` turns the term off."""
        self._anchor = {name: tensor.detach().clone() for name, tensor in (weights or {}).items()}

    def value(self, guidance: Any, engine: Any) -> Tensor:
        """``1/2 |v - w|^2``."""
        squares = [
            (weight - self._anchor[name]).square().sum()
            for name, weight in trained_weights(engine.network).items()
            if name in self._anchor
        ]
        return torch.stack(squares).sum() / 2 if squares else engine.state.output["loss"].new_zeros(())


class DittoAlgorithm(TrainerAlgorithm):
    """Ditto (Li et al., arXiv 2012.04221, algorithm 1): ``min_v F(v) + lambda / 2 |v - w|^2`` beside the global task.

    In each round the site trains the global weights ``w`` for one local epoch without the term and returns them, as in
    FedAvg; its own network ``v`` then takes the same number of steps with the term, pulled towards the ``w`` that it
    received. The global training has separate optimizer moments, kept from round to round if the site's are. A round
    takes twice the time of a local epoch and the bytes of FedAvg.

    Args:
        term: the term with lambda; it is off while the global network is trained.
        others: arguments of :class:`TrainerAlgorithm`.

    Example::

        "client_algorithm": {"_target_": "samfed_monai.methods.ditto.DittoAlgorithm", "term": "@terms#ditto", …}
    """

    def __init__(self, *, term: AnchoredTerm, **others: Any) -> None:
        super().__init__(**others)
        self.term = term
        self._update: dict[str, Tensor] = {}
        self._moments: Any = defaultdict(dict)

    def receive(self, round: int, rounds: int, kind: Kind, tensors: Mapping[str, Tensor]) -> dict[str, float]:
        received = self.taken(kind, tensors)  # w
        if not self.optimizer.state:  # the first round, or keep_optimizer is false: none for the global network either
            self._moments = defaultdict(dict)
        personal = {name: tensor.detach().clone() for name, tensor in self.network.state_dict().items()}
        self.term.set_anchor(None)
        try:
            self.put(received)
            with self._global_moments():
                means = self.run_extra(round, "global")  # the epoch of v follows receive()
            self._update = self.named()  # what share() sends
        finally:
            self.network.load_state_dict(personal)
        self.term.set_anchor({name: received[name].to(weight.device) for name, weight in self.trained().items()})
        return {f"global_{name}": value for name, value in means.items()}

    def share(self) -> tuple[Kind, dict[str, Tensor]]:
        update, self._update = self._update, {}
        return Kind.WEIGHTS, update

    def state_dict(self) -> dict[str, Tensor]:
        if not self._moments:
            return {}
        with self._global_moments():
            return training_state.pack(self.optimizer)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self._moments = defaultdict(dict)
        if state:
            with self._global_moments():
                training_state.unpack(self.optimizer, state)

    def reset(self) -> None:
        self._update, self._moments = {}, defaultdict(dict)

    @contextmanager
    def _global_moments(self) -> Iterator[None]:
        personal, self.optimizer.state = self.optimizer.state, self._moments
        try:
            yield
        finally:
            self._moments, self.optimizer.state = self.optimizer.state, personal
