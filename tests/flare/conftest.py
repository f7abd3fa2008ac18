"""FLARE's own processes need its package; tests that start them are slow."""

from __future__ import annotations

from importlib.util import find_spec

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if find_spec("nvflare") is None:
        skip = pytest.mark.skip(reason="nvflare is not installed: pip install samfed-monai[flare]")
        for item in items:
            if "tests/flare" in str(item.path):
                item.add_marker(skip)
