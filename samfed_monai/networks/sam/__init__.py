"""Segment Anything as a teacher: builders, low-rank adaptation, adapters."""

from samfed_monai.lazy import attach

__getattr__, __dir__ = attach(
    __name__,
    {
        "SAM_BUILDERS": "build",
        "build_sam": "build",
        "PromptFreeSam": "model",
        "apply_lora": "lora",
        "LoRAQueryValue": "lora",
        "Adapter": "adapter",
        "load_adapter": "adapter",
        "save_adapter": "adapter",
        "Teacher": "teacher",
    },
)
