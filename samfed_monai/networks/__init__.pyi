"""Client networks and SAM; every name is imported at first use."""

from .catalogue import CLIENT_NETWORKS, client_network
from .inferer import AutocastInferer, bf16_gains
from .key_patterns import KeySplit, network_split, split_keys
from .sam.build import SAM_BUILDERS, build_sam
from .sam.lora import apply_lora
from .sam.network import SamNetwork, SamPath, sam_outputs
from .sam.teacher import Teacher
from .torchvision_ops import declare_torchvision_operators
from .weights import (
    KNOWN,
    Weights,
    find_checkpoint,
    install_weights,
    known_weights,
    starts_from,
    takes_teacher,
    weights_folder,
)

__all__ = [
    "CLIENT_NETWORKS",
    "KNOWN",
    "SAM_BUILDERS",
    "AutocastInferer",
    "KeySplit",
    "SamNetwork",
    "SamPath",
    "Teacher",
    "Weights",
    "apply_lora",
    "bf16_gains",
    "build_sam",
    "client_network",
    "declare_torchvision_operators",
    "find_checkpoint",
    "install_weights",
    "known_weights",
    "network_split",
    "sam_outputs",
    "split_keys",
    "starts_from",
    "takes_teacher",
    "weights_folder",
]
