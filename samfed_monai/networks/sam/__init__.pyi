"""Segment Anything as a teacher and as a client: builders, low-rank adaptation, experts, adapters."""

from .adapter import Adapter, load_adapter, save_adapter
from .build import SAM_BUILDERS, PromptFreeSam, build_sam
from .experts import apply_experts
from .lora import LoRAQueryValue, apply_lora
from .network import SamNetwork
from .teacher import Teacher

__all__ = [
    "SAM_BUILDERS",
    "Adapter",
    "LoRAQueryValue",
    "PromptFreeSam",
    "SamNetwork",
    "Teacher",
    "apply_experts",
    "apply_lora",
    "build_sam",
    "load_adapter",
    "save_adapter",
]
