"""Weights that others trained: which are known, where they lie and come from, and that they are the right ones."""

from samfed_monai.lazy import attach

__getattr__, __dir__ = attach(
    __name__,
    {
        "KNOWN": "known",
        "Weights": "known",
        "named": "known",
        "starts_from": "known",
        "takes_teacher": "known",
        "find_checkpoint": "install",
        "install_weights": "install",
        "weights_folder": "install",
    },
)
