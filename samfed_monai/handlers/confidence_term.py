"""The term that teaches a network to know where it is right."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from samfed_monai.handlers.records import record
from samfed_monai.handlers.term import Term
from samfed_monai.losses.hssf import CONFIDENCE_WEIGHT, confidence_loss
from samfed_monai.networks.hssf import hssf_outputs

if TYPE_CHECKING:
    from torch import Tensor


class ConfidenceTerm(Term):
    """``4 L_conf`` on the labelled batch: HSSF's confidence branch against "argmax = label" (docs/method.md).

    It looks at the supervised prediction alone, so it works with or without an unlabelled stream, at a site and in the
    server's steps on the public images. Also records ``<name>_mean``, the mean confidence on the labelled batch.

    Args:
        name: under which the value is logged.
        weight: factor of the term (HSSF: 4).
        schedule: how the factor changes over the rounds.
        fraction: part of the rounds in which a ramp rises.

    Raises:
        Refused: at the first step, a network without a confidence branch (``hssf_resnet18`` and its like have one).

    Example::

        {"_target_": "samfed_monai.handlers.ConfidenceTerm", "weight": 4.0}
    """

    unlabelled = False

    def __init__(
        self,
        *,
        name: str = "confidence",
        weight: float = CONFIDENCE_WEIGHT,
        schedule: str = "constant",
        fraction: float = 0.4,
    ) -> None:
        super().__init__(name=name, weight=weight, schedule=schedule, fraction=fraction)

    def value(self, guidance: Any, engine: Any) -> Tensor:
        """``L_conf``."""
        prediction = engine.state.output["pred"]
        confidence = hssf_outputs(prediction).confidence
        record(engine, f"{self.name}_mean", confidence.detach().sigmoid().mean())
        return confidence_loss(confidence, prediction, engine.state.output["label"])
