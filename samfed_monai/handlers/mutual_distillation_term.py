"""The term by which a network's global and personal paths teach each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from samfed_monai.core.errors import Problems
from samfed_monai.handlers.term import Term
from samfed_monai.losses import logits_kl
from samfed_monai.networks.sam.network import require_experts, sam_outputs

if TYPE_CHECKING:
    from torch import Tensor


class MutualDistillationTerm(Term):
    """``b T^2 KL(other path || trained path)`` on the labelled batch (pFedSAM, docs/pfedsam.md).

    The trained path is that of the supervised prediction, the other one runs on the same images without gradient: in
    stage G (see ``DecoupledStages``) that is ``KL(personal || global)``, in stage L ``KL(global || personal)``. It
    costs one forward pass a step and needs no unlabelled stream. Both paths' logits are at hand, so nothing is clipped
    as it is where a guide's mask was stored: paths that agree cost nothing, however sure they are.

    Args:
        name: under which the value is logged.
        temperature: ``T`` > 0.
        weight: ``b``.
        schedule: how the factor changes over the rounds.
        fraction: part of the rounds in which a ramp rises.

    Raises:
        Refused: a temperature that is not positive; at ``STARTED``, a network without paths or without experts.

    Example::

        "terms#mutual": {"_target_": "samfed_monai.handlers.MutualDistillationTerm", "temperature": 2.0, "weight": 0.5}
    """

    unlabelled = False

    def __init__(
        self,
        *,
        name: str = "mutual_kd",
        temperature: float = 2.0,
        weight: float = 0.5,
        schedule: str = "constant",
        fraction: float = 0.4,
    ) -> None:
        super().__init__(name=name, weight=weight, schedule=schedule, fraction=fraction)
        problems = Problems()
        if not temperature > 0:
            problems.add(f"{self.where}#temperature", found=repr(temperature), expected="a number > 0")
        problems.refuse_if_any()
        self.temperature = temperature

    def check(self, engine: Any) -> None:
        """Refuses a network whose two paths are one."""
        super().check(engine)
        require_experts(engine.network, self.where)

    def value(self, guidance: Any, engine: Any) -> Tensor:
        """``T^2 KL(other || trained)``."""
        output = engine.state.output
        path = sam_outputs(output["pred"]).path.other
        with torch.no_grad():
            other = engine.inferer(output["image"], engine.network, path=path)
        return logits_kl(output["pred"], other, self.temperature)
