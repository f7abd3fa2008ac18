"""Messages, clients, strategies, transports and the controller of a federation."""

from .algo import SamFedAlgo
from .clip import UpdateGuard
from .controller import RoundController, RunResult
from .envelope import Envelope, Kind, MessageRefused
from .exchange import from_exchange, to_exchange
from .failure import Failure, scrub
from .inbox import Inbox
from .job import FederatedJob
from .local_transport import LocalTransport
from .plan import Places, Plan
from .process_transport import ProcessTransport
from .progress import Progress
from .round_store import RoundStore
from .run_folder import COLUMNS, RunFolder
from .server import Server
from .sharing.adaptive_mixing import AdaptiveMixing
from .sharing.apple import AppleSharing
from .sharing.base import Sharing
from .sharing.ditto import DittoSharing
from .sharing.nothing import NothingShared
from .sharing.prototypes import PrototypeSharing
from .sharing.public_masks import PublicMaskSharing
from .signals import Interrupted
from .site_node import SiteNode
from .site_worker import Release, SiteWorker
from .strategies.apple import Apple
from .strategies.averaged_fedavg import AveragedFedAvg
from .strategies.base import Strategy
from .strategies.client_tailored import ClientTailored
from .strategies.condensation_fusion import CondensationFusion
from .strategies.consensus import Consensus
from .strategies.fedavg import FedAvg
from .strategies.local_only import LocalOnly
from .strategies.personal_fedavg import PersonalFedAvg
from .strategies.prototypes import Prototypes
from .strategies.semifl import ServerTuned
from .strategies.untrained import Untrained
from .transport import Task, Traffic, Transport
from .wire import from_bytes, to_bytes, wire_size

__all__ = [
    "COLUMNS",
    "AdaptiveMixing",
    "Apple",
    "AppleSharing",
    "AveragedFedAvg",
    "ClientTailored",
    "CondensationFusion",
    "Consensus",
    "DittoSharing",
    "Envelope",
    "Failure",
    "FedAvg",
    "FederatedJob",
    "Inbox",
    "Interrupted",
    "Kind",
    "LocalOnly",
    "LocalTransport",
    "MessageRefused",
    "NothingShared",
    "PersonalFedAvg",
    "Places",
    "Plan",
    "ProcessTransport",
    "Progress",
    "PrototypeSharing",
    "Prototypes",
    "PublicMaskSharing",
    "Release",
    "RoundController",
    "RoundStore",
    "RunFolder",
    "RunResult",
    "SamFedAlgo",
    "Server",
    "ServerTuned",
    "Sharing",
    "SiteNode",
    "SiteWorker",
    "Strategy",
    "Task",
    "Traffic",
    "Transport",
    "Untrained",
    "UpdateGuard",
    "from_bytes",
    "from_exchange",
    "scrub",
    "to_bytes",
    "to_exchange",
    "wire_size",
]
