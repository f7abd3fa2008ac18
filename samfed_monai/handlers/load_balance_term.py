"""The term that keeps the experts evenly in use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from samfed_monai.handlers.term import Term
from samfed_monai.losses import load_balance
from samfed_monai.networks.sam.network import require_experts, sam_outputs

if TYPE_CHECKING:
    from torch import Tensor


class LoadBalanceTerm(Term):
    """``0.01 K sum_k f_k P_k``, mean over the layers (see ``samfed_monai.losses.load_balance``).

    It reads the supervised prediction alone. On the global path, where no expert takes part, it adds nothing and
    records nothing.

    Args:
        name: under which the value is logged; 1 is even use.
        weight: factor of the term (docs/pfedsam.md; Switch Transformers: 0.01).
        schedule: how the factor changes over the rounds.
        fraction: part of the rounds in which a ramp rises.

    Raises:
        Refused: at ``STARTED``, a network without experts.

    Example::

        "terms#load_balance": {"_target_": "samfed_monai.handlers.LoadBalanceTerm", "weight": 0.01}
    """

    unlabelled = False

    def __init__(
        self,
        *,
        name: str = "load_balance",
        weight: float = 0.01,
        schedule: str = "constant",
        fraction: float = 0.4,
    ) -> None:
        super().__init__(name=name, weight=weight, schedule=schedule, fraction=fraction)

    def check(self, engine: Any) -> None:
        """Refuses a network without experts."""
        super().check(engine)
        require_experts(engine.network, self.where)

    def __call__(self, engine: Any) -> None:
        """Adds the term where experts took part."""
        if sam_outputs(engine.state.output["pred"]).routing is not None:
            super().__call__(engine)

    def value(self, guidance: Any, engine: Any) -> Tensor:
        """``K sum_k f_k P_k``."""
        routing: Any = sam_outputs(engine.state.output["pred"]).routing  # not None: __call__ has looked
        return load_balance(routing.share, routing.probability)
