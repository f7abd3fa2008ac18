"""UniMatch (arXiv 2208.09910): two strong views and a view with feature dropout, compared with the weak view."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from torch import Tensor

from samfed_monai.core.validators import BELOW_1, FRACTION, NOT_NEGATIVE
from samfed_monai.handlers.guide import Guidance
from samfed_monai.handlers.term import Term
from samfed_monai.losses import sure_label, weighted_pseudo_label_loss
from samfed_monai.networks.features import feature_dropout, require_encoder


@dataclass(kw_only=True, eq=False)
class UniMatchTerm(Term):
    """``strong (L_s1 + L_s2) / 2 + features L_fp`` (Yang et al., arXiv 2208.09910, equation 5; both 0.5 there).

    The label of all three is the student's prediction of the weak view where its confidence exceeds ``tau``. ``L_fp``
    runs the weak view again with dropped channels of the encoder's features. Each loss is ours: cross entropy and soft
    Dice (``dice_ce``; ``no_sam`` has the structure loss), normalised by the sum of weights; the paper has cross entropy
    over all pixels.

    A step costs two more forward and backward passes. Images are not mixed: ``stream#cutmix`` must be 0.

    Args:
        name: name under which the value is logged.
        tau: minimum confidence of a label.
        second: key of the second strong view; ``StrongViewd`` writes it if ``keys`` and ``output_key`` name it.
        drop: probability to drop a channel of the features.
        strong: weight of the mean over the two strong views; the first is the stream's own.
        features: weight of the feature stream; 0 omits it.
        weight, schedule, fraction: see :class:`samfed_monai.handlers.Term`.

    Raises:
        Refused: an argument out of range; at ``STARTED``, a network whose encoder cannot be reached; at the first
            batch, a missing view.

    Example::

        "strong_view#keys": ["image", "image"],
        "strong_view#output_key": ["image_strong", "image_strong2"],
        "terms#unimatch": {
            "_target_": "samfed_monai.methods.unimatch.UniMatchTerm", "tau": 0.95, "second": "image_strong2"
        }
    """

    checks: ClassVar = {"tau": FRACTION, "strong": NOT_NEGATIVE, "features": NOT_NEGATIVE}
    checks |= {"drop": partial(BELOW_1, what="a chance")}

    name: str = "unimatch"
    tau: float = 0.95
    second: str = "image_strong2"
    drop: float = 0.5
    strong: float = 0.5
    features: float = 0.5

    @property
    def needs(self) -> tuple[str, ...]:
        """The student's own weak view."""
        return ("weak",)

    def check(self, engine: Any) -> None:
        """Also checks the network's encoder."""
        super().check(engine)
        if self.features > 0:
            require_encoder(engine.network, self.where)

    def value(self, guidance: Guidance, engine: Any) -> Tensor:
        """The weighted sum of the three losses."""
        label, sure = sure_label(guidance.weak, self.tau)
        logits = engine.inferer(guidance.view(self.second, where=self.where), engine.network)
        first = weighted_pseudo_label_loss(guidance.student, label, sure)
        second = weighted_pseudo_label_loss(logits, label, sure)
        total = self.strong * (first + second) / 2
        if self.features > 0:
            weak = guidance.view("image", where=self.where)
            with feature_dropout(engine.network, self.drop):
                logits = engine.inferer(weak, engine.network)
            total = total + self.features * weighted_pseudo_label_loss(logits, label, sure)
        return total
