"""The executor of the tests: this package's, with another process that trains."""

from __future__ import annotations

from samfed_monai.flare.executor import SiteExecutor


class ToyExecutor(SiteExecutor):
    worker = "tests.flare.toy_worker"
