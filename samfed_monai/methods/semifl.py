"""SemiFL (arXiv 2106.01432): sites learn from the global model's labels, the server from the public set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from samfed_monai.core import training_state
from samfed_monai.core.errors import Stopped
from samfed_monai.core.io import check_tensors
from samfed_monai.core.seeds import derive_seed
from samfed_monai.core.training_state import own_random_state
from samfed_monai.methods.fedavg import FedAvg
from samfed_monai.methods.mixup import NeighbourMixUp
from samfed_monai.protocol.strategy import Exchange, Server, Strategy

if TYPE_CHECKING:
    from samfed_monai.methods.heterogeneous import PublicMaskAlgorithm


@dataclass(kw_only=True, eq=False)
class MixUpTerm(NeighbourMixUp):
    """``a L(mixed, y) + (1 - a) L(mixed, y')`` on ``a x + (1 - a) x'``, as SemiFL has it (arXiv 2106.01432, section 3).

    ``x`` and ``x'`` are weak views, neighbours in the batch; ``a`` is drawn from Beta(alpha, alpha) once per batch.
    Labels are the guide's: ``y`` where its confidence exceeds ``tau``, ``y'`` everywhere (the paper's fix and mix sets,
    by pixel instead of by image).

    Args:
        name: name under which the value is logged.
        guide: the guide that gives the labels.
        tau: minimum confidence of ``y``.
        alpha: parameter of the Beta distribution (SemiFL's code: 0.75).
        weight, schedule, fraction: see :class:`samfed_monai.handlers.Term`.

    Raises:
        Refused: an argument out of range.

    Example::

        {"_target_": "samfed_monai.methods.semifl.MixUpTerm", "guide": "global", "tau": 0.95}
    """

    name: str = "mixup"
    guide: str = "global"
    tau: float = 0.95
    alpha: float = 0.75

    def neighbours(self, sure: Tensor) -> Tensor:
        return torch.ones_like(sure)


class ServerTuned(FedAvg):
    """FedAvg whose mean is trained on ``D_p`` before it is sent again: alternate training.

    SemiFL, Diao et al., arXiv 2106.01432, algorithm 1; the variant ``semifl`` has the sites' side. A round without any
    update leaves the weights unchanged. The paper's server momentum and its static batch normalisation are left out;
    sites are weighted as in every other method.

    The server trains with the public phase of the bundle's ``client_algorithm`` (labels only, no targets); its
    optimizer's moments are kept from round to round.

    Raises:
        Refused: at :meth:`attach`, a bundle without ``client_algorithm``.
        Stopped: in a round, if :meth:`tune` returns weights that are not finite or not the network's.

    Example::

        "strategy": {"_target_": "samfed_monai.methods.semifl.ServerTuned"}
    """

    exchange = Exchange(mean=True)

    def attach(self, server: Server) -> Strategy:
        self._algorithm: PublicMaskAlgorithm = server.make_client_algorithm("semifl")
        return super().attach(server)

    def state_dict(self) -> dict[str, Tensor]:
        return training_state.pack(self._algorithm.optimizer)

    def load_state_dict(self, weights: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
        super().load_state_dict(weights, state)
        if state:
            training_state.unpack(self._algorithm.optimizer, state)

    def finish(self, round: int) -> None:
        self._has_update = self._total > 0
        super().finish(round)

    def refine(self, round: int) -> None:
        if not self._has_update:
            return
        tuned = self.tune(dict(self.global_weights), round)
        where = f"training at the server, round {round + 1}"
        if problems := check_tensors(tuned, like=self.global_weights, where=where):
            raise Stopped(str(problems[0]), "lower learning_rate")
        for name, tensor in self.global_weights.items():
            tensor.copy_(tuned[name])

    def tune(self, weights: Mapping[str, Tensor], round: int) -> Mapping[str, Tensor]:
        """Returns the weights after training on the public labels; ``weights`` is not modified.

        The result is a function of weights, moments, round and the run's seed: a resumed run gives the same bits.
        """
        network = self._algorithm.network
        network.load_state_dict(dict(weights), strict=False)  # frozen and personal tensors are not exchanged
        with own_random_state(derive_seed(self.server.seed, "server", round, "tune")):
            self._algorithm.run(round, self.server.rounds)
        state = network.state_dict()
        return {name: state[name].detach().cpu() for name in weights if name in state}
