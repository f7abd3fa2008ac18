"""What may leave a site: an allow-list, withheld small counts, optional noise, and an audit line for every message."""

from .allowed import Allowed
from .audit import AuditLog, audit_table, read_audit
from .central import CentralNoise, require_budget
from .noise import SeededNoise, SystemNoise
from .possible import require_possible, statistics_notice, too_few_images, unsent_rules
from .release import ReleaseFilter, site_release
from .settings import (
    CentralPrivacy,
    DifferentialPrivacy,
    Privacy,
    SecureAggregation,
    epsilon,
    privacy_account,
    settings_of,
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
    "SeededNoise",
    "SystemNoise",
    "audit_table",
    "epsilon",
    "privacy_account",
    "read_audit",
    "require_budget",
    "require_possible",
    "settings_of",
    "site_release",
    "statistics_notice",
    "too_few_images",
    "unsent_rules",
]
