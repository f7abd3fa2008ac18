"""The federation on NVIDIA FLARE: the same controller and the same sites, with FLARE between them."""

from .controller import FederationController
from .job import export_job

__all__ = [
    "FederationController",
    "export_job",
]
