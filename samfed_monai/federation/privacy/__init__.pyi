"""What may leave a site: an allow-list, withheld small counts, noise where it is asked for, a line on every message."""

from .audit import AuditLog, audit_table, read_audit
from .noise import SeededNoise, SystemNoise
from .release import Allowed, Release, require_possible, site_release, statistics_notice, too_few_images
from .settings import DifferentialPrivacy, Privacy, epsilon, privacy_account

__all__ = [
    "Allowed",
    "AuditLog",
    "DifferentialPrivacy",
    "Privacy",
    "Release",
    "SeededNoise",
    "SystemNoise",
    "audit_table",
    "epsilon",
    "privacy_account",
    "read_audit",
    "require_possible",
    "site_release",
    "statistics_notice",
    "too_few_images",
]
