"""Bundles as text: found, read strictly, and checked before anything in them is instantiated or evaluated."""

from samfed_monai.lazy import attach

__getattr__, __dir__ = attach(
    __name__,
    {
        "BundleConfig": "layers",
        "WORKFLOWS": "layers",
        "check_bundle": "check",
        "exit_on_refusal": "exit_codes",
        "find_bundle": "bundles",
        "find_variant": "variants",
        "known_variants": "variants",
        "variant_files": "variants",
        "knobs_of": "knobs",
        "packaged_bundle": "bundles",
        "packaged_bundles": "bundles",
        "require_checked": "require",
        "run_job": "exit_codes",
        "run_or_exit": "exit_codes",
        "strict_bundle_problems": "strict_bundle",
        "strict_problems": "strict",
    },
)
