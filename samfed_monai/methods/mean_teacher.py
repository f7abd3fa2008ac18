"""Mean Teacher (arXiv 1703.01780): a term pulls the strong view's prediction towards the student's moving average."""

from __future__ import annotations

from dataclasses import dataclass

from ignite.engine import Engine
from torch import Tensor
from torch.nn import functional

from samfed_monai.handlers.guide import Guidance
from samfed_monai.handlers.term import GuidedTerm
from samfed_monai.losses import probabilities


def consistency_mse(logits: Tensor, guide: Tensor) -> Tensor:
    """Mean squared difference of probabilities (Tarvainen and Valpola, arXiv 1703.01780, equation 1).

    Args:
        logits: (B, C, H, W) float, of the student.
        guide: (B, C, H, W) float in [0, 1], without gradient.
    """
    return functional.mse_loss(probabilities(logits), guide.detach().to(logits.dtype))


@dataclass(kw_only=True, eq=False)
class ConsistencyTerm(GuidedTerm):
    """Mean squared distance of the strong view's probabilities from a guide's; with ``ema`` this is Mean Teacher.

    Tarvainen and Valpola, arXiv 1703.01780. In a federation :class:`EmaGuide` starts every round from the received
    weights, so the teacher averages over the steps of a round, and over rounds only through the server's mean.

    Args:
        name: name under which the value is logged.
        guide: the guide whose probabilities are the target.
        weight, schedule, fraction: see :class:`samfed_monai.handlers.Term`.

    Example::

        {"_target_": "samfed_monai.methods.mean_teacher.ConsistencyTerm", "guide": "ema", "weight": 10.0}
    """

    name: str = "consistency"
    guide: str = "ema"
    schedule: str = "gaussian_ramp"

    def value(self, guidance: Guidance, engine: Engine) -> Tensor:
        """Returns the distance."""
        return consistency_mse(guidance.student, guidance.probabilities(self.guide, where=self.where))
