"""Base class of mixup terms: mixtures of neighbouring images of a batch (Zhang et al., arXiv 1710.09412)."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from samfed_monai.core.validators import FRACTION, POSITIVE
from samfed_monai.handlers.guide import Guidance
from samfed_monai.handlers.term import GuidedTerm
from samfed_monai.losses import sure_label, weighted_pseudo_label_loss


@dataclass
class Mixture:
    """Predictions of a mixed batch, and the labels to compare them with.

    Args:
        logits: (B, C, H, W) float of ``a x + (1 - a) x'``, with gradient.
        label: (B, 1, H, W) long, ``y``; ``y'`` is the neighbour's.
        sure: (B, 1, H, W) float, 1 where the confidence of ``y`` exceeds ``tau``.
        share: ``a``.
    """

    logits: Tensor
    label: Tensor
    sure: Tensor
    share: float

    def loss(self, weight: Tensor, neighbour_weight: Tensor) -> Tensor:
        """``a L(mixed, y) + (1 - a) L(mixed, y')``, each with pixel weights (B, 1, H, W) float."""
        first = weighted_pseudo_label_loss(self.logits, self.label, weight)
        second = weighted_pseudo_label_loss(self.logits, self.label.roll(1, 0), neighbour_weight)
        return self.share * first + (1 - self.share) * second


@dataclass(kw_only=True, eq=False)
class NeighbourMixUp(GuidedTerm):
    """``a L(mixed, y) + (1 - a) L(mixed, y')`` on ``a x + (1 - a) x'`` (Zhang et al., arXiv 1710.09412).

    ``a`` is drawn from Beta(alpha, alpha) once per batch, and ``x'`` is the neighbour of ``x`` in it. Labels are the
    guide's: ``y`` counts where its confidence exceeds ``tau``, ``y'`` where the subclass decides (:meth:`neighbours`).

    Args:
        name: name under which the value is logged.
        guide: the guide that gives the labels; ``weak`` is the student itself.
        tau: minimum confidence of ``y``.
        alpha: parameter of the Beta distribution, > 0.
        weight, schedule, fraction: see :class:`samfed_monai.handlers.Term`.

    Raises:
        Refused: an argument out of range.
    """

    checks: ClassVar = {"tau": FRACTION, "alpha": POSITIVE}

    name: str
    tau: float
    alpha: float

    def __post_init__(self) -> None:
        super().__post_init__()
        alpha = torch.tensor(float(self.alpha))
        self._beta = torch.distributions.Beta(alpha, alpha)

    @abstractmethod
    def neighbours(self, sure: Tensor) -> Tensor:
        """Returns the weight of each pixel of ``y'``, given whether ``y`` is sure; both (B, 1, H, W) float."""

    def value(self, guidance: Guidance, engine: Any) -> Tensor:
        """Returns the loss of the mixture."""
        mixture = self.mixture(guidance, engine)
        return mixture.loss(mixture.sure, self.neighbours(mixture.sure))

    def mixture(self, guidance: Guidance, engine: Any) -> Mixture:
        """Mixes the iteration's batch and runs the network on it."""
        image = guidance.view("image", where=self.where)
        label, sure = sure_label(guidance.probabilities(self.guide, where=self.where), self.tau)
        share = float(self._beta.sample())
        return Mixture(engine.inferer(torch.lerp(image.roll(1, 0), image, share), engine.network), label, sure, share)
