"""Messages, clients, strategies, transports and the controller of a federation."""

from .client import SamFedAlgo
from .controller import RoundController, RunResult
from .exchange import from_exchange, to_exchange
from .job import FederatedJob
from .local_transport import LocalTransport
from .plan import Places, Plan
from .process_transport import ProcessTransport
from .progress import Progress
from .round_store import RoundStore
from .run_folder import COLUMNS, RunFolder
from .signals import Interrupted
from .site import Release, SiteNode, SiteWorker

__all__ = [
    "COLUMNS",
    "FederatedJob",
    "Interrupted",
    "LocalTransport",
    "Places",
    "Plan",
    "ProcessTransport",
    "Progress",
    "Release",
    "RoundController",
    "RoundStore",
    "RunFolder",
    "RunResult",
    "SamFedAlgo",
    "SiteNode",
    "SiteWorker",
    "from_exchange",
    "to_exchange",
]
