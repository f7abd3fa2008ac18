"""What version 0.1 had and no variant takes: found by its name of then, with a warning, for one version more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from samfed_monai.core.errors import Problem, Refused
from samfed_monai.core.moving_average import move_average
from samfed_monai.methods.fedavg import FedAvg

if TYPE_CHECKING:
    from torch import Tensor

    from samfed_monai.protocol.message import Message

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

        "strategy": {"_target_": "samfed_monai.federation.AveragedFedAvg", "decay": 0.7}
    """

    def __init__(self, *, decay: float = 0.7) -> None:
        super().__init__()
        if isinstance(decay, bool) or not isinstance(decay, (int, float)) or not 0 <= decay < 1:
            raise Refused([Problem("strategy#decay", found=repr(decay), expected="a number in [0, 1)")])
        self.decay = decay
        self._current: dict[str, Tensor] = {}
        self._average: dict[str, Tensor] = {}

    def configure(self, round: int) -> dict[str, Message]:
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
