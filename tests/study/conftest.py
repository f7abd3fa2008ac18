from tests.reports.conftest import runs

__all__ = ["runs"]
