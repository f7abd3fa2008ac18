from __future__ import annotations

from tests.reports.conftest import runs

__all__ = ["runs"]
