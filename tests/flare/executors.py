"""Executors of the tests: this package's, with other processes that train."""

from __future__ import annotations

from typing import Any

import pytest

from samfed_monai.flare.executor import SiteExecutor, Trainer
from tests.forking import fork_workers


class ToyExecutor(SiteExecutor):
    worker = "tests.flare.toy_worker"


class ManyExecutor(SiteExecutor):
    """For many runs: the process that trains, one for each of them, is forked from one that has torch."""

    worker = "tests.flare.many_plans_worker"

    def _trainer_of(self, fl_ctx: Any) -> Trainer:
        if self._trainer is None:
            fork_workers(pytest.MonkeyPatch())
            pytest.MonkeyPatch().setattr(Trainer, "_ready", _ready_for_another_run)
        return super()._trainer_of(fl_ctx)


_ready = Trainer._ready


def _ready_for_another_run(self: Trainer, run: str, run_name: str) -> Any:
    if self._run not in (None, (run, run_name)):
        self.close()
        self._run = self._child = None
    return _ready(self, run, run_name)
