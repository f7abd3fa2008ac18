"""Names that had another place in version 0.1: found there for one version more, with a warning that says where now."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from typing import Any

MOVED = {
    "samfed_monai.federation": {
        "samfed_monai.methods": "AdaptiveMixing Apple AppleSharing AveragedFedAvg ClientTailored CondensationFusion "
        "Consensus DittoSharing FedAvg LocalOnly NothingShared PersonalFedAvg PrototypeSharing Prototypes "
        "PublicMaskSharing ServerTuned Untrained",
        "samfed_monai.protocol": "Envelope Failure Inbox Kind MessageRefused Server Sharing Strategy Task Traffic "
        "Transport UpdateGuard from_bytes scrub to_bytes wire_size",
    },
    "samfed_monai.handlers": {
        "samfed_monai.methods": "AlternatingParts ConfidenceTerm DecoupledStages ExpertUsage LoadBalanceTerm LsslTerm "
        "MixUpTerm MutualDistillationTerm PrototypeTerm ProximalTerm PublicDistillationTerm UniMatchTerm",
        "samfed_monai.parts": "site_records",
    },
    "samfed_monai.losses": {
        "samfed_monai.handlers": "SCHEDULES constant gaussian_ramp linear",
        "samfed_monai.methods": "ClassSums LsslLabels class_sums confidence_loss dropout_consistency gated_loss "
        "load_balance lssl_labels prototype_loss",
    },
    "samfed_monai.networks": {
        "samfed_monai.teacher": "Augmentation Exam SelfTraining TeacherFit evaluation_records fill_store public_hash",
    },
    "samfed_monai.transforms": {"samfed_monai.methods": "NoiseViewd"},
}
"""Package to where names of it are now. Bundles that were copied out of version 0.1 name these as ``_target_``."""


def found_where_moved(package: str, getattr_: Callable[[str], Any]) -> Callable[[str], Any]:
    """A package's ``__getattr__`` that also finds what has moved out of it.

    Args:
        package: its ``__name__``.
        getattr_: finds what is still there.

    Example::

        __getattr__ = found_where_moved(__name__, __getattr__)
    """
    places = {name: now for now, names in MOVED[package].items() for name in names.split()}

    def find(name: str) -> Any:
        if name not in places:
            return getattr_(name)
        now = f"{places[name]}.{name}"
        text = f"{package}.{name} is {now} now; the old name goes with the next version: write the new one"
        warnings.warn(text, FutureWarning, stacklevel=2)
        return getattr(importlib.import_module(places[name]), name)

    return find
