"""The run folders that reports are tested with."""

from tests.reports.conftest import run_folder, runs  # noqa: F401
