"""Reports of runs: figures, overlays, the HTML report and comparisons. A leaf."""

from .ablation import ablation_page
from .compare import comparison_table
from .compare_page import comparison_page, sections_page, write_comparison
from .html import Report
from .run_data import RunData, read_federation
from .style import CAVEATS

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
