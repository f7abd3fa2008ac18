"""The term that pulls the strong view towards a guide's probabilities."""

from __future__ import annotations

from typing import TYPE_CHECKING

from samfed_monai.handlers.guidance import Guidance
from samfed_monai.handlers.term import Term
from samfed_monai.losses import CONSISTENCY_MEASURES

if TYPE_CHECKING:
    from ignite.engine import Engine
    from torch import Tensor


class ConsistencyTerm(Term):
    """Distance of the strong view's probabilities from a guide's: with ``ema`` and ``mse``, mean teacher.

    Tarvainen and Valpola, arXiv 1703.01780. In a federation :class:`EmaGuide` starts every round from the weights that
    arrived, so the teacher averages over the steps of a round, and over rounds only through the server's mean.

    Args:
        name: under which the value is logged.
        guide: whose probabilities are the target.
        measure: a name in :data:`samfed_monai.losses.CONSISTENCY_MEASURES`.
        weight: factor of the term.
        schedule: how the factor changes over the rounds.
        fraction: part of the rounds in which a ramp rises.

    Example::

        {"_target_": "samfed_monai.handlers.ConsistencyTerm", "guide": "ema", "measure": "mse", "weight": 10.0}
    """

    def __init__(
        self,
        *,
        name: str = "consistency",
        guide: str = "ema",
        measure: str = "mse",
        weight: float = 1.0,
        schedule: str = "gaussian_ramp",
        fraction: float = 0.4,
    ) -> None:
        super().__init__(name=name, weight=weight, schedule=schedule, fraction=fraction)
        self.guide, self._measure = guide, CONSISTENCY_MEASURES[measure]

    @property
    def needs(self) -> tuple[str, ...]:
        """The guide."""
        return (self.guide,)

    def value(self, guidance: Guidance, engine: Engine) -> Tensor:
        """The distance."""
        return self._measure(guidance.student, guidance.probabilities(self.guide, asked_by=self.where))
