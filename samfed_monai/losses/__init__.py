"""Pure tensor functions and modules: structure loss, agreement, distillation, schedules. No engine, no I/O."""

from samfed_monai.lazy import attach

__getattr__, __dir__ = attach(
    __name__,
    {
        "AGREEMENT_RULES": "agreement",
        "Agreement": "agreement",
        "AgreementSettings": "agreement",
        "CONSISTENCY_MEASURES": "consistency",
        "RaterRates": "rater_rates",
        "Reliability": "condensation",
        "choose": "condensation",
        "image_reliability": "condensation",
        "most_reliable": "condensation",
        "where_better": "condensation",
        "SCHEDULES": "schedules",
        "StructureLoss": "structure",
        "agree": "agreement",
        "consensus": "rater_rates",
        "LsslLabels": "hssf",
        "confidence_loss": "hssf",
        "gated_loss": "hssf",
        "hssf_kl": "hssf",
        "lssl_labels": "hssf",
        "consistency_kl": "consistency",
        "consistency_mse": "consistency",
        "constant": "schedules",
        "dice_of_labels": "agreement",
        "distillation_kl": "distillation",
        "em_step": "rater_rates",
        "gaussian_ramp": "schedules",
        "hard_label": "agreement",
        "linear": "schedules",
        "probabilities": "distillation",
        "weighted_pseudo_label_loss": "pseudo_label",
    },
)
