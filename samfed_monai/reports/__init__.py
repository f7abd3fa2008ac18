"""Reports of runs: figures, overlays, the HTML report and comparisons. A leaf."""

from samfed_monai.lazy import attach

__all__ = [
    "CAVEATS",
    "Report",
    "RunData",
    "ablation_page",
    "comparison_page",
    "comparison_table",
    "read_federation",
    "sections_page",
    "write_comparison",
]

__getattr__, __dir__ = attach(
    __name__,
    {
        "RunData": "run_data",
        "read_federation": "federation_csv",
        "CAVEATS": "caveats",
        "Report": "html",
        "comparison_table": "compare",
        "comparison_page": "compare_page",
        "sections_page": "compare_page",
        "ablation_page": "ablation",
        "write_comparison": "compare_page",
    },
)
