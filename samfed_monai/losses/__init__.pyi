"""Pure tensor functions and modules: structure loss, agreement, distillation. No engine, no I/O."""

from .agreement import (
    AGREEMENT_RULES,
    Agreement,
    AgreementSettings,
    Reliability,
    agree,
    image_reliability,
    sure_agreement,
    trust_of_images,
)
from .pixelwise import (
    dice_of_labels,
    distillation_kl,
    entropy,
    hard_label,
    hssf_kl,
    logits_kl,
    probabilities,
    sure_label,
    weighted_pseudo_label_loss,
    without_label,
)
from .structure import StructureLoss

__all__ = [
    "AGREEMENT_RULES",
    "Agreement",
    "AgreementSettings",
    "Reliability",
    "StructureLoss",
    "agree",
    "dice_of_labels",
    "distillation_kl",
    "entropy",
    "hard_label",
    "hssf_kl",
    "image_reliability",
    "logits_kl",
    "probabilities",
    "sure_agreement",
    "sure_label",
    "trust_of_images",
    "weighted_pseudo_label_loss",
    "without_label",
]
