"""Every round of a run as scalars for TensorBoard, where that is installed."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from samfed_monai.federation.run_folder import round_traffic

logger = logging.getLogger(__name__)

TENSORBOARD = "tensorboard"
"""The folder of a run that TensorBoard is pointed at, and the name of its package."""


def scalars_of(record: Mapping[str, Any]) -> dict[str, float]:
    """What a round's record has for TensorBoard, by tag.

    ``dice/<site>`` and ``dice/mean`` (over all validation images), ``terms/<name>/<site>``, ``seconds/<activity>``,
    ``MB/up`` and ``MB/down`` (all sites together, millions of bytes). What a round lacks has no tag.

    Args:
        record: content of ``round.json``.
    """
    scored = {site: entry["validation"]["dice"] for site, entry in record["sites"].items() if entry["validation"]}
    found: dict[str, float | None] = {f"dice/{site}": dice for site, dice in scored.items()}
    found["dice/mean"] = record["average"]["validation"]["dice"]
    for site, entry in record["sites"].items():
        found |= {f"terms/{name}/{site}": value for name, value in (entry.get("terms") or {}).items()}
    found |= {f"seconds/{activity}": value for activity, value in record["seconds"].items()}
    found |= {f"MB/{name.removesuffix('_bytes')}": count / 1e6 for name, count in round_traffic(record).items()}
    return {tag: value for tag, value in found.items() if value is not None}


class Tracking:
    """Writes every round of a run once it is stored. A failure is reported, ends the writing, and never the run.

    TensorBoard is written by MONAI's own handler, of an engine whose epochs are the rounds, from 1.

    Args:
        folder: the run's folder; its ``tensorboard/`` is added to.

    Example::

        with Tracking("runs/a") as watching:
            watching(records)
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._writer: Any = None
        package = find_spec(TENSORBOARD)
        self._works = package is not None and package.origin is not None  # without one it is a mere folder, a run's

    def __enter__(self) -> Tracking:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def __call__(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Writes the last of ``records``, which are those of all rounds so far."""
        if not self._works:
            return
        try:
            self._write(records[-1])
        except Exception as error:  # a broken TensorBoard, a full disk: what matters is stored already
            self._works = False
            logger.warning("%s is not written any more: %s: %s", TENSORBOARD, type(error).__name__, error)

    def _write(self, record: Mapping[str, Any]) -> None:
        from monai.handlers import TensorBoardStatsHandler

        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            # of a run that goes on after a stop, what was written of later rounds counts no more
            self._writer = SummaryWriter(str(self.folder / TENSORBOARD), purge_step=record["round"] + 1)
        TensorBoardStatsHandler(summary_writer=self._writer, iteration_log=False).epoch_completed(_engine(record))


def _engine(record: Mapping[str, Any]) -> Any:
    """An engine at the end of an epoch which is the record's round."""
    from ignite.engine import Engine

    engine = Engine(lambda engine, batch: None)
    engine.state.epoch, engine.state.max_epochs = record["round"] + 1, record["rounds"]
    engine.state.metrics = scalars_of(record)
    return engine
