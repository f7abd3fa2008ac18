"""Pure tensor functions and modules: structure loss, agreement, distillation, schedules. No engine, no I/O."""

from .agreement import AGREEMENT_RULES, Agreement, AgreementSettings, agree
from .channels import dice_of_labels, hard_label
from .condensation import Reliability, choose, image_reliability, most_reliable, where_better
from .expert_balance import load_balance
from .hssf import LsslLabels, confidence_loss, dropout_consistency, gated_loss, hssf_kl, lssl_labels
from .prototypes import ClassSums, class_sums, prototype_loss
from .reliability import RaterRates, consensus, em_step, sure_agreement, trust_of_images
from .structure import StructureLoss
from .unlabelled import (
    CONSISTENCY_MEASURES,
    consistency_kl,
    consistency_mse,
    distillation_kl,
    logits_kl,
    probabilities,
    weighted_pseudo_label_loss,
)

__all__ = [
    "AGREEMENT_RULES",
    "CONSISTENCY_MEASURES",
    "Agreement",
    "AgreementSettings",
    "ClassSums",
    "LsslLabels",
    "RaterRates",
    "Reliability",
    "StructureLoss",
    "agree",
    "choose",
    "class_sums",
    "confidence_loss",
    "consensus",
    "consistency_kl",
    "consistency_mse",
    "dice_of_labels",
    "distillation_kl",
    "dropout_consistency",
    "em_step",
    "gated_loss",
    "hard_label",
    "hssf_kl",
    "image_reliability",
    "load_balance",
    "logits_kl",
    "lssl_labels",
    "most_reliable",
    "probabilities",
    "prototype_loss",
    "sure_agreement",
    "trust_of_images",
    "weighted_pseudo_label_loss",
    "where_better",
]
