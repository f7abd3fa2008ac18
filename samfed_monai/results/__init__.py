"""``results.json``: schema, check and assembly. The federation writes it, reports read it."""

from samfed_monai.lazy import attach

__all__ = ["RESULTS_SCHEMA", "build_results", "validate_results"]

__getattr__, __dir__ = attach(
    __name__,
    {"RESULTS_SCHEMA": "schema", "validate_results": "schema", "build_results": "build"},
)
