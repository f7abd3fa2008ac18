"""Base classes of methods: messages, strategies (server), client algorithms (site), transports."""

from .guard import Inbox, UpdateGuard
from .message import MAX_BYTES, Kind, Message, MessageRefused, from_bytes, to_bytes, wire_size
from .statistics import CollectedStatistics, Statistic, StatisticKind, StatisticRule
from .strategy import ClientAlgorithm, Exchange, Server, Strategy
from .transport import Failure, Task, Traffic, Transport, received, scrub

__all__ = [
    "MAX_BYTES",
    "ClientAlgorithm",
    "CollectedStatistics",
    "Exchange",
    "Failure",
    "Inbox",
    "Kind",
    "Message",
    "MessageRefused",
    "Server",
    "Statistic",
    "StatisticKind",
    "StatisticRule",
    "Strategy",
    "Task",
    "Traffic",
    "Transport",
    "UpdateGuard",
    "from_bytes",
    "received",
    "scrub",
    "to_bytes",
    "wire_size",
]
