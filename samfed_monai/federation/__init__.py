"""Messages, clients, strategies, transports and the controller of a federation."""

from samfed_monai.lazy import attach

_EXPORTS = {
    "COLUMNS": "run_folder",
    "CondensationFusion": "strategies.condensation_fusion",
    "Consensus": "strategies.consensus",
    "Envelope": "envelope",
    "Failure": "failure",
    "FedAvg": "strategies.fedavg",
    "FederatedJob": "job",
    "Inbox": "inbox",
    "Interrupted": "signals",
    "Kind": "envelope",
    "LocalOnly": "strategies.local_only",
    "LocalTransport": "local_transport",
    "MessageRefused": "envelope",
    "Progress": "progress",
    "PrototypeSharing": "sharing.prototypes",
    "Prototypes": "strategies.prototypes",
    "PublicMaskSharing": "sharing.public_masks",
    "RoundController": "controller",
    "RoundStore": "round_store",
    "RunFolder": "run_folder",
    "RunResult": "controller",
    "SamFedAlgo": "algo",
    "Server": "server",
    "ServerTuned": "strategies.semifl",
    "Sharing": "sharing.base",
    "Strategy": "strategies.base",
    "Task": "transport",
    "Traffic": "transport",
    "Transport": "transport",
    "UpdateGuard": "clip",
    "from_bytes": "wire",
    "from_exchange": "exchange",
    "scrub": "failure",
    "to_bytes": "wire",
    "to_exchange": "exchange",
    "wire_size": "wire",
}
__all__ = list(_EXPORTS)

__getattr__, __dir__ = attach(__name__, _EXPORTS)
