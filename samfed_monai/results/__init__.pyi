"""``results.json``: schema, check and assembly. The federation writes it, reports read it."""

from .build import RESULTS_SCHEMA, build_results, validate_results

__all__ = [
    "RESULTS_SCHEMA",
    "build_results",
    "validate_results",
]
