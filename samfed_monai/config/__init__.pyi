"""The JSON of bundles: found, read strictly, and checked before anything is instantiated or evaluated."""

from .bundles import bundle_of_command, find_bundle, packaged_bundle, packaged_bundles
from .check import check_bundle
from .options import options_of
from .parse import WORKFLOWS, BundleConfig
from .strict import strict_bundle_problems, strict_problems
from .variants import find_variant, known_variants, variant_files
from .workflow import require_checked, run_job

__all__ = [
    "WORKFLOWS",
    "BundleConfig",
    "bundle_of_command",
    "check_bundle",
    "find_bundle",
    "find_variant",
    "known_variants",
    "options_of",
    "packaged_bundle",
    "packaged_bundles",
    "require_checked",
    "run_job",
    "strict_bundle_problems",
    "strict_problems",
    "variant_files",
]
