"""What may leave a site: an allow-list, withheld small counts, optional noise, and an audit line for every message."""

from .accounting import epsilon
from .allowed import Allowed
from .audit import AuditLog, audit_table, read_audit
from .noise import CentralNoise, SystemNoise
from .release import ReleaseFilter
from .rules import (
    CentralPrivacy,
    DifferentialPrivacy,
    Privacy,
    SecureAggregation,
    notes_on_statistics,
    privacy_account,
    require_budget,
    require_possible,
    stored_settings,
    too_few_images,
    unsent_rules,
)

__all__ = [
    "Allowed",
    "AuditLog",
    "CentralNoise",
    "CentralPrivacy",
    "DifferentialPrivacy",
    "Privacy",
    "ReleaseFilter",
    "SecureAggregation",
    "SystemNoise",
    "audit_table",
    "epsilon",
    "notes_on_statistics",
    "privacy_account",
    "read_audit",
    "require_budget",
    "require_possible",
    "stored_settings",
    "too_few_images",
    "unsent_rules",
]
