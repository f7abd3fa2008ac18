"""What every report and table says about the method's standing."""

from __future__ import annotations

CAVEATS = (
    "This is a re-implementation of SAM-Fed (arXiv 2511.14302), whose code is not public.",
    "The agreement rule is our reading of it: we had the abstract and summaries of the paper, not its method section.",
)
