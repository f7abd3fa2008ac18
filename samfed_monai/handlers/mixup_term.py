"""The term that trains on mixtures of two images against both their labels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from samfed_monai.core.errors import Problems
from samfed_monai.handlers.guide import Guidance
from samfed_monai.handlers.term import Term
from samfed_monai.losses import hard_label, weighted_pseudo_label_loss


class MixUpTerm(Term):
    """``a L(mixed, y) + (1 - a) L(mixed, y')`` on ``a x + (1 - a) x'``, as SemiFL has it (arXiv 2106.01432, section 3).

    ``x`` and ``x'`` are weak views, ``x'`` its neighbour in the batch; ``a`` is drawn from Beta(alpha, alpha), one for
    a batch. Labels are the guide's: ``y`` where it is surer than ``tau``, ``y'`` everywhere (the paper's fix and mix
    sets, by pixel instead of by image).

    Args:
        name: under which the value is logged.
        guide: who gives the labels.
        tau: least confidence of ``y``.
        alpha: of the Beta distribution (0.75: SemiFL's code).
        weight: factor of the term.
        schedule: how the factor changes over the rounds.
        fraction: part of the rounds in which a ramp rises.

    Raises:
        Refused: an argument out of range.

    Example::

        {"_target_": "samfed_monai.handlers.MixUpTerm", "guide": "global", "tau": 0.95}
    """

    def __init__(
        self,
        *,
        name: str = "mixup",
        guide: str = "global",
        tau: float = 0.95,
        alpha: float = 0.75,
        weight: float = 1.0,
        schedule: str = "constant",
        fraction: float = 0.4,
    ) -> None:
        super().__init__(name=name, weight=weight, schedule=schedule, fraction=fraction)
        problems = Problems()
        if not 0 <= tau <= 1:
            problems.add(f"{self.where}#tau", found=repr(tau), expected="a number in [0, 1]")
        if not alpha > 0:
            problems.add(f"{self.where}#alpha", found=repr(alpha), expected="a number > 0")
        problems.refuse_if_any()
        self.guide, self.tau = guide, tau
        self._beta = torch.distributions.Beta(torch.tensor(float(alpha)), torch.tensor(float(alpha)))

    @property
    def needs(self) -> tuple[str, ...]:
        """The guide."""
        return (self.guide,)

    def value(self, guidance: Guidance, engine: Any) -> Tensor:
        """The loss of the mixture."""
        image = guidance.view("image", asked_by=self.where)
        label, confidence = hard_label(guidance.probabilities(self.guide, asked_by=self.where))
        share = float(self._beta.sample())
        logits = engine.inferer(torch.lerp(image.roll(1, 0), image, share), engine.network)
        sure = (confidence > self.tau).to(confidence.dtype)
        own = weighted_pseudo_label_loss(logits, label, sure)
        other = weighted_pseudo_label_loss(logits, label.roll(1, 0), torch.ones_like(sure))
        return share * own + (1 - share) * other
