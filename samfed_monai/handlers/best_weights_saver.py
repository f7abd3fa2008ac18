"""Keeps the weights of the best validated epoch."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ignite.engine import Events

from samfed_monai.io import save_tensors

if TYPE_CHECKING:
    from ignite.engine import Engine

logger = logging.getLogger(__name__)


class BestWeightsSaver:
    """Writes the trainer's network as safetensors whenever the evaluator's metric rises above all before it.

    Attach it to the trainer, after MONAI's ``ValidationHandler``. Without validation images it keeps the last epoch.

    Args:
        evaluator: whose ``state.metrics`` is read.
        path: ``.safetensors`` file, replaced atomically; its header names metric, value and epoch.
        metric: name of the metric, larger is better.

    Example::

        {"_target_": "samfed_monai.handlers.BestWeightsSaver", "evaluator": "@validate#evaluator",
         "path": "$@output_dir + '/best.safetensors'"}
    """

    def __init__(self, *, evaluator: Engine, path: str | Path, metric: str = "dice") -> None:
        self.evaluator, self.path, self.metric = evaluator, Path(path), metric
        self._best = float("-inf")

    def attach(self, engine: Engine) -> None:
        """Binds the saver to a trainer."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Any) -> None:
        """Saves when there is something better to save."""
        value = self.evaluator.state.metrics.get(self.metric)
        if value is not None and value <= self._best:
            return
        metadata = {"metric": self.metric, "value": str(value), "epoch": str(engine.state.epoch)}
        save_tensors(self.path, engine.network.state_dict(), metadata)
        if value is not None:
            self._best = float(value)
            logger.info("epoch %d: best %s so far, %.4f, kept in %s", engine.state.epoch, self.metric, value, self.path)
