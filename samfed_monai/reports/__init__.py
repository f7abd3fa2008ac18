"""Results of runs: the schema of ``results.json``, figures, overlays, the HTML report and comparisons. A leaf."""

from samfed_monai.lazy import attach

__all__ = [
    "CAVEATS",
    "RESULTS_SCHEMA",
    "Report",
    "RunData",
    "build_results",
    "comparison_page",
    "comparison_table",
    "pool",
    "read_federation",
    "validate_results",
    "write_comparison",
    "write_report",
]

__getattr__, __dir__ = attach(
    __name__,
    {
        "RESULTS_SCHEMA": "schema",
        "validate_results": "schema",
        "build_results": "results",
        "pool": "results",
        "RunData": "run_data",
        "read_federation": "federation_csv",
        "CAVEATS": "caveats",
        "Report": "html",
        "write_report": "html",
        "comparison_table": "compare",
        "comparison_page": "compare_page",
        "write_comparison": "compare_page",
    },
)
