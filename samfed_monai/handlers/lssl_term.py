"""HSSF's local step as a term: two views teach each other, the surer one pixel by pixel."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F

from samfed_monai.core.errors import Problems
from samfed_monai.handlers.guide import Guidance
from samfed_monai.handlers.records import record
from samfed_monai.handlers.term import Term
from samfed_monai.losses import StructureLoss, dropout_consistency, gated_loss, lssl_labels
from samfed_monai.networks.hssf import HssfNetwork, hssf_outputs

if TYPE_CHECKING:
    from torch import Tensor


class LsslTerm(Term):
    """HSSF's semi-supervised loss on an unlabelled batch: both views against one label, and an MSE (docs/method.md).

    The label of a pixel is that of the view with the higher predicted confidence, flipped where even that is below
    ``flip_below``; an image counts only if its mean confidence is above ``least_mean``. A view costs ``loss`` and, once
    more, its plain cross entropy. Added to both is the weighted squared difference between the weak view's logits and
    those with half of its features dropped (:func:`samfed_monai.losses.dropout_consistency`).

    The stream gives the student's strong view. The weak one it only runs without gradient, so the term runs the student
    once more, in train mode and with gradient: HSSF learns from both views, and the two passes through the decoder
    share the encoder. Both views must have one geometry: the stream's CutMix has to be 0.

    Also records ``<name>_counted``, the share of images that count, and ``<name>_flipped``, that of flipped pixels.

    Args:
        name: under which the value is logged.
        loss: of logits and labels, a mean over images; ``None`` is :class:`StructureLoss`.
        flip_below: confidence under which a label is turned round (HSSF: 0.3).
        least_mean: mean confidence an image must exceed (HSSF: 0.75).
        feature_dropout: chance with which a channel of the features is dropped (HSSF: 0.5); 0 leaves the MSE out.
        cross_entropy: factor of the plain cross entropy that is added to ``loss`` (HSSF: 1).
        consistency: factor of the squared difference (HSSF: 1).
        weight: factor of the term.
        schedule: how the factor changes over the rounds.
        fraction: part of the rounds in which a ramp rises.

    Raises:
        Refused: thresholds outside [0, 1], a negative factor; at ``STARTED``, a network that is not HSSF's; in the
            first step, CutMix.

    Example::

        {"_target_": "samfed_monai.handlers.LsslTerm", "loss": "@loss", "flip_below": 0.3, "least_mean": 0.75}
    """

    def __init__(
        self,
        *,
        name: str = "lssl",
        loss: Callable[[Tensor, Tensor], Tensor] | None = None,
        flip_below: float = 0.3,
        least_mean: float = 0.75,
        feature_dropout: float = 0.5,
        cross_entropy: float = 1.0,
        consistency: float = 1.0,
        weight: float = 1.0,
        schedule: str = "constant",
        fraction: float = 0.4,
    ) -> None:
        super().__init__(name=name, weight=weight, schedule=schedule, fraction=fraction)
        problems = Problems()
        shares = {"flip_below": flip_below, "least_mean": least_mean, "feature_dropout": feature_dropout}
        for key, value in shares.items():
            if not 0 <= value <= 1:
                problems.add(f"{self.where}#{key}", found=repr(value), expected="a number in [0, 1]")
        for key, factor in {"cross_entropy": cross_entropy, "consistency": consistency}.items():
            if not factor >= 0:
                problems.add(f"{self.where}#{key}", found=repr(factor), expected="a number >= 0")
        problems.refuse_if_any()
        self.loss = StructureLoss() if loss is None else loss
        self.flip_below, self.least_mean = flip_below, least_mean
        self.feature_dropout, self.cross_entropy, self.consistency = feature_dropout, cross_entropy, consistency

    def check(self, engine: Any) -> None:
        """Refuses, before any work, a network without confidence or feature dropout."""
        super().check(engine)
        problems = Problems()
        if not isinstance(engine.network, HssfNetwork):
            found, expected = type(engine.network).__name__, "a network that predicts its confidence"
            mend = "set network_name to hssf_resnet18, hssf_resnet34 or hssf_resnet101"
            problems.add(self.where, found=found, expected=expected, mend=mend)
        problems.refuse_if_any()

    def value(self, guidance: Guidance, engine: Any) -> Tensor:
        """The loss of both views plus the MSE."""
        image = guidance.view("image", asked_by=self.where)
        weak = engine.inferer(image, engine.network, feature_dropout=self.feature_dropout)
        strong = guidance.student
        of_weak = hssf_outputs(weak)
        chosen = lssl_labels(
            weak,
            of_weak.confidence,
            strong,
            hssf_outputs(strong).confidence,
            flip_below=self.flip_below,
            least_mean=self.least_mean,
        )
        record(engine, f"{self.name}_counted", chosen.gate.float().mean())
        record(engine, f"{self.name}_flipped", chosen.flipped.float().mean())
        first, second = (gated_loss(self._of_view, view, chosen.label, chosen.gate) for view in (weak, strong))
        value = first + second
        if of_weak.dropped is None:
            return value
        return value + self.consistency * dropout_consistency(of_weak.logits, of_weak.dropped)

    def _of_view(self, logits: Tensor, label: Tensor) -> Tensor:
        entropy = F.binary_cross_entropy_with_logits(logits, label.to(logits.dtype))
        return self.loss(logits, label) + self.cross_entropy * entropy
