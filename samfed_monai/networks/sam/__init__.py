"""Segment Anything as a teacher and as a client: builders, low-rank adaptation, experts, adapters."""

from samfed_monai.lazy import attach

__getattr__, __dir__ = attach(
    __name__,
    {
        "SAM_BUILDERS": "build",
        "build_sam": "build",
        "PromptFreeSam": "model",
        "apply_lora": "lora",
        "LoRAQueryValue": "lora",
        "apply_experts": "experts",
        "SamNetwork": "network",
        "Adapter": "adapter",
        "load_adapter": "adapter",
        "save_adapter": "adapter",
        "Teacher": "teacher",
    },
)
