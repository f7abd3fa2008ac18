"""The term that keeps the strong view near the round's global network."""

from __future__ import annotations

from typing import TYPE_CHECKING

from samfed_monai.errors import Problem, Refused
from samfed_monai.handlers.guidance import Guidance
from samfed_monai.handlers.term import Term
from samfed_monai.losses import distillation_kl

if TYPE_CHECKING:
    from ignite.engine import Engine
    from torch import Tensor


class GlobalDistillationTerm(Term):
    """``lambda_G L_G``: ``T^2 KL(p_G || p_s)`` over all pixels (docs/method.md, step 5, global-to-local transfer).

    Args:
        name: under which the value is logged.
        guide: guide that is distilled, the global network.
        temperature: ``T``.
        weight: factor of the term.
        schedule: how the factor changes over the rounds.
        fraction: part of the rounds in which a ramp rises.

    Raises:
        Refused: a temperature that is not positive.

    Example::

        {"_target_": "samfed_monai.handlers.GlobalDistillationTerm", "guide": "global", "weight": 0.1}
    """

    def __init__(
        self,
        *,
        name: str = "global_kd",
        guide: str = "global",
        temperature: float = 2.0,
        weight: float = 0.1,
        schedule: str = "constant",
        fraction: float = 0.4,
    ) -> None:
        super().__init__(name=name, weight=weight, schedule=schedule, fraction=fraction)
        if not temperature > 0:
            where, expected = f"{self.where}#temperature", "a number > 0"
            raise Refused([Problem(where, found=repr(temperature), expected=expected)])
        self.guide, self.temperature = guide, temperature

    @property
    def needs(self) -> tuple[str, ...]:
        """The global network."""
        return (self.guide,)

    def value(self, guidance: Guidance, engine: Engine) -> Tensor:
        """``L_G``."""
        return distillation_kl(
            guidance.student, guidance.probabilities(self.guide, asked_by=self.where), self.temperature
        )
