"""One method, one file, and beside it the JSON that turns it on."""

from .apple import Apple, AppleSharing
from .ditto import DittoSharing
from .fca import ClientTailored
from .fedavg import AveragedFedAvg, FedAvg, PersonalFedAvg
from .fedicra import AdaptiveMixing
from .fedmd import Consensus
from .fedproto import ClassSums, Prototypes, PrototypeSharing, PrototypeTerm, class_sums, prototype_loss
from .fedprox import ProximalTerm
from .fedrep import AlternatingParts
from .heterogeneous import CondensationFusion, PublicDistillationTerm, PublicMaskSharing
from .hssf import (
    ConfidenceTerm,
    LsslLabels,
    LsslTerm,
    NoiseViewd,
    confidence_loss,
    dropout_consistency,
    gated_loss,
    lssl_labels,
)
from .local_only import LocalOnly, NothingShared, Untrained
from .pfedsam import DecoupledStages, ExpertUsage, LoadBalanceTerm, MutualDistillationTerm, load_balance
from .semifl import MixUpTerm, ServerTuned
from .unimatch import UniMatchTerm

__all__ = [
    "AdaptiveMixing",
    "AlternatingParts",
    "Apple",
    "AppleSharing",
    "AveragedFedAvg",
    "ClassSums",
    "ClientTailored",
    "CondensationFusion",
    "ConfidenceTerm",
    "Consensus",
    "DecoupledStages",
    "DittoSharing",
    "ExpertUsage",
    "FedAvg",
    "LoadBalanceTerm",
    "LocalOnly",
    "LsslLabels",
    "LsslTerm",
    "MixUpTerm",
    "MutualDistillationTerm",
    "NoiseViewd",
    "NothingShared",
    "PersonalFedAvg",
    "PrototypeSharing",
    "PrototypeTerm",
    "Prototypes",
    "ProximalTerm",
    "PublicDistillationTerm",
    "PublicMaskSharing",
    "ServerTuned",
    "UniMatchTerm",
    "Untrained",
    "class_sums",
    "confidence_loss",
    "dropout_consistency",
    "gated_loss",
    "load_balance",
    "lssl_labels",
    "prototype_loss",
]
