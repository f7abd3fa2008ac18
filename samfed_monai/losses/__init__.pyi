"""Pure tensor functions and modules: structure loss, agreement, distillation, schedules. No engine, no I/O."""

from .agreement import AGREEMENT_RULES, Agreement, AgreementSettings, agree
from .channels import dice_of_labels, entropy, hard_label, without_label
from .prototypes import ClassSums, class_sums
from .reliability import Reliability, image_reliability, sure_agreement, trust_of_images
from .structure import StructureLoss
from .unlabelled import distillation_kl, hssf_kl, logits_kl, probabilities, weighted_pseudo_label_loss

__all__ = [
    "AGREEMENT_RULES",
    "Agreement",
    "AgreementSettings",
    "ClassSums",
    "Reliability",
    "StructureLoss",
    "agree",
    "class_sums",
    "dice_of_labels",
    "distillation_kl",
    "entropy",
    "hard_label",
    "hssf_kl",
    "image_reliability",
    "logits_kl",
    "probabilities",
    "sure_agreement",
    "trust_of_images",
    "weighted_pseudo_label_loss",
    "without_label",
]
