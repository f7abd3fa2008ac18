"""What may leave a site: an allow-list, withheld small counts, noise where it is asked for, a line on every message."""

from samfed_monai.lazy import attach

_EXPORTS = {
    "Allowed": "allowed",
    "AuditLog": "audit",
    "DifferentialPrivacy": "settings",
    "Privacy": "settings",
    "Release": "release",
    "SeededNoise": "noise",
    "SystemNoise": "noise",
    "audit_table": "audit",
    "epsilon": "accountant",
    "privacy_account": "account",
    "read_audit": "audit",
    "require_possible": "site",
    "site_release": "site",
    "too_few_images": "site",
}
__all__ = list(_EXPORTS)

__getattr__, __dir__ = attach(__name__, _EXPORTS)
