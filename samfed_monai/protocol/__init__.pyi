"""Base classes of methods: messages, strategies (server), sharings (site), transports."""

from .guard import Inbox, UpdateGuard
from .message import MAX_BYTES, Kind, Message, MessageRefused, from_bytes, to_bytes, wire_size
from .statistics import Collected, Statistic, StatisticKind, StatisticRule
from .strategy import Exchange, Server, Sharing, Strategy
from .transport import Failure, Task, Traffic, Transport, received, scrub

__all__ = [
    "MAX_BYTES",
    "Collected",
    "Exchange",
    "Failure",
    "Inbox",
    "Kind",
    "Message",
    "MessageRefused",
    "Server",
    "Sharing",
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
