"""Messages, clients, strategies, transports and the controller of a federation."""

from samfed_monai.lazy import attach

_EXPORTS = {
    "COLUMNS": "run_folder",
    "CondensationFusion": "condensation_fusion",
    "Consensus": "consensus",
    "Envelope": "envelope",
    "Failure": "failure",
    "FedAvg": "fedavg",
    "FederatedJob": "job",
    "Inbox": "inbox",
    "Interrupted": "signals",
    "Kind": "envelope",
    "LocalOnly": "local_only",
    "LocalTransport": "local_transport",
    "MessageRefused": "envelope",
    "Progress": "progress",
    "PrototypeSharing": "prototypes",
    "Prototypes": "prototypes",
    "PublicMaskSharing": "public_mask_sharing",
    "RoundController": "controller",
    "RoundStore": "round_store",
    "RunFolder": "run_folder",
    "RunResult": "controller",
    "SamFedAlgo": "algo",
    "Server": "server",
    "ServerTuned": "semifl",
    "Sharing": "sharing",
    "Strategy": "strategy",
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
