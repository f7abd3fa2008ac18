"""The federation: job, server loop, sites and clients, run folder, privacy filters."""

from .client import SamFedAlgo
from .exchange_object import from_exchange_object, to_exchange_object
from .job import FederatedJob
from .local_transport import LocalTransport
from .plan import Paths, Plan
from .process_transport import ProcessTransport
from .progress import Progress
from .run_folder import COLUMNS, RoundStore, RunFolder
from .server import RoundController, RunResult
from .signals import Interrupted
from .site import ClientAlgoSite, Site
from .wire_transport import Post, WireTransport

__all__ = [
    "COLUMNS",
    "ClientAlgoSite",
    "FederatedJob",
    "Interrupted",
    "LocalTransport",
    "Paths",
    "Plan",
    "Post",
    "ProcessTransport",
    "Progress",
    "RoundController",
    "RoundStore",
    "RunFolder",
    "RunResult",
    "SamFedAlgo",
    "Site",
    "WireTransport",
    "from_exchange_object",
    "to_exchange_object",
]
