"""Reports of runs: figures, overlays, the HTML report and comparisons. No other package imports it."""

from .compare import comparison_table
from .compare_forms import write_comparison
from .html import Report
from .run_data import RunData, read_federation
from .style import CAVEATS

__all__ = [
    "CAVEATS",
    "Report",
    "RunData",
    "comparison_table",
    "read_federation",
    "write_comparison",
]
