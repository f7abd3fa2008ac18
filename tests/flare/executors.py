"""Executors of the tests: this package's, with other processes that train."""

from __future__ import annotations

import pytest

from samfed_monai.flare import executor
from samfed_monai.flare.executor import SiteExecutor


class ToyExecutor(SiteExecutor):
    worker = "tests.flare.toy_worker"


class ManyExecutor(SiteExecutor):
    """For many runs: the process that trains, one for each of them, is forked from one that has torch."""

    worker = "tests.flare.many_plans_worker"

    def __init__(self) -> None:
        forking = "import pytest; from tests.forking import fork_workers; fork_workers(pytest.MonkeyPatch()); "
        forking += "from samfed_monai.flare.client import Site; Site._require_this_job_s = lambda *_: None; "
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(executor, "_START", forking + executor._START)
            super().__init__()
