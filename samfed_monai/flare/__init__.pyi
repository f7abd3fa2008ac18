"""The federation on NVIDIA FLARE: the same controller and the same sites, with FLARE between them."""

from .controller import FederationController
from .job import export_job
from .transport import FlareTransport, Post

__all__ = [
    "FederationController",
    "FlareTransport",
    "Post",
    "export_job",
]
