"""What may leave a site: an allow-list, withheld small counts, noise where it is asked for, a line on every message."""

from .account import privacy_account
from .accountant import epsilon
from .allowed import Allowed
from .audit import AuditLog, audit_table, read_audit
from .noise import SeededNoise, SystemNoise
from .release import Release
from .settings import DifferentialPrivacy, Privacy
from .site import require_possible, site_release, too_few_images

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
    "too_few_images",
]
