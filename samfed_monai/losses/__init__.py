"""Pure tensor functions and modules: structure loss, agreement, distillation, schedules. No engine, no I/O."""

from samfed_monai.lazy import attach

__getattr__, __dir__ = attach(
    __name__,
    {
        "AGREEMENT_RULES": "agreement",
        "Agreement": "agreement",
        "SCHEDULES": "schedules",
        "StructureLoss": "structure",
        "agree": "agreement",
        "constant": "schedules",
        "dice_of_labels": "agreement",
        "distillation_kl": "distillation",
        "gaussian_ramp": "schedules",
        "hard_label": "agreement",
        "linear": "schedules",
        "probabilities": "distillation",
        "weighted_pseudo_label_loss": "pseudo_label",
    },
)
