"""The federation: job, server loop, sites and clients, run folder, privacy filters."""

from .client import SamFedAlgo
from .controller import RoundController, RunResult
from .exchange_object import from_exchange_object, to_exchange_object
from .job import FederatedJob
from .local_transport import LocalTransport
from .plan import Places, Plan
from .process_transport import ProcessTransport
from .progress import Progress
from .round_store import RoundStore
from .run_folder import COLUMNS, RunFolder
from .signals import Interrupted
from .site import ClientAlgoExecutor, FederatedSite, Filter

__all__ = [
    "COLUMNS",
    "ClientAlgoExecutor",
    "FederatedJob",
    "FederatedSite",
    "Filter",
    "Interrupted",
    "LocalTransport",
    "Places",
    "Plan",
    "ProcessTransport",
    "Progress",
    "RoundController",
    "RoundStore",
    "RunFolder",
    "RunResult",
    "SamFedAlgo",
    "from_exchange_object",
    "to_exchange_object",
]
