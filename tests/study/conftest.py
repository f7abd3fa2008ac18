import functools

import pytest

from samfed_monai.config import variants
from tests.reports.conftest import runs

__all__ = ["runs"]

read_once = functools.cache(variants.read_method)


@pytest.fixture(autouse=True)
def methods_are_read_once(monkeypatch):
    """The files of methods do not change in these tests, and one page reads all of them many times."""
    monkeypatch.setattr(variants, "read_method", read_once)
