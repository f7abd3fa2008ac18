"""What can be watched of a run while it goes on: ``progress.png``, TensorBoard where installed, MLflow if asked."""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from samfed_monai.config.parse import flat
from samfed_monai.core.errors import Problem, Refused
from samfed_monai.core.io import PUBLIC, read_json, write_bytes
from samfed_monai.federation.run_folder import round_traffic

logger = logging.getLogger(__name__)

PICTURE = "progress.png"
TENSORBOARD = "tensorboard"
"""The folder of a run that TensorBoard is pointed at, and the name of its package."""


EXPERIMENT = "samfed"
"""The name of the experiment of all runs in MLflow."""
DATABASE = "mlflow.db"
_DRAWING = 0.05  # of a run's time, at the most: a picture holds all rounds, and takes longer with each
_LONGEST = 500  # characters of a parameter that every version of MLflow takes


def mlflow_store(asked: bool | str | None, folder: Path) -> str | None:
    """The address of MLflow's store; ``None`` where it is not asked for.

    Args:
        asked: ``True`` is an SQLite file ``mlflow.db`` beside the run's folder, which runs of one place share; a
            path is such a file, and anything with ``://`` an address as MLflow takes it.
        folder: of the run.

    Raises:
        Refused: MLflow is not installed, or files are asked for as a store, which it does not take any more.
    """
    if not asked:
        return None
    where = "federate.json -> mlflow"
    if not isinstance(asked, (bool, str)):
        expected = "true, a file for an SQLite store, an address such as http://HOST:5000, or null"
        raise Refused([Problem(where, found=repr(asked), expected=expected)])
    package = find_spec("mlflow")
    if package is None or package.origin is None:
        hint = "pip install 'samfed-monai[watch]', or leave the option at null"
        raise Refused([Problem(where, found="MLflow is not installed", expected="it installed", hint=hint)])
    if isinstance(asked, str) and "://" in asked:
        if asked.startswith("file:"):
            hint = "name a file for an SQLite store, for instance runs/mlflow.db"
            raise Refused([Problem(where, found=asked, expected="a database or a server", hint=hint)])
        return asked
    path = folder.parent / DATABASE if asked is True else Path(str(asked))
    if path.is_dir():
        hint = f"name a file in it, for instance {path / DATABASE}"
        raise Refused([Problem(where, found=f"the folder {asked}", expected="a file for an SQLite store", hint=hint)])
    return f"sqlite:///{path.resolve()}"


def scalars_of(record: Mapping[str, Any]) -> dict[str, float]:
    """What a round's record has for TensorBoard and MLflow, by tag.

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
    """Shows every round of a run once it is stored. Its failures are reported once and never end a run.

    TensorBoard and MLflow are written by MONAI's own handlers, of an engine whose epochs are the rounds, from 1.

    Args:
        folder: the run's folder; ``progress.png`` is replaced, ``tensorboard/`` is added to. The picture
            leaves short rounds out, so that drawing takes at most a twentieth of the time, but never the last.
        mlflow: address of MLflow's store (:func:`mlflow_store`); ``None`` writes nothing there. A run that goes on
            after a stop goes on there, too.

    Example::

        with Tracking("runs/a") as watching:
            watching(records)
    """

    def __init__(self, folder: str | Path, *, mlflow: str | None = None) -> None:
        self.folder, self.mlflow = Path(folder), mlflow
        self._writer: Any = None
        self._tracker: Any = None
        self._failed: set[str] = set()
        self._due = -math.inf  # when the next picture is due, in monotonic seconds

    def __enter__(self) -> Tracking:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def __call__(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Shows the last of ``records``, which are those of all rounds so far."""
        shows = {PICTURE: self._draw, TENSORBOARD: self._write_scalars}
        if self.mlflow is not None:
            shows["MLflow"] = self._track
        for what, show in shows.items():
            if what in self._failed:
                continue
            try:
                show(records)
            except Exception as error:  # a broken TensorBoard, a full disk: what matters is stored already
                self._failed.add(what)
                logger.warning("%s is not written any more: %s: %s", what, type(error).__name__, error)

    def _draw(self, records: Sequence[Mapping[str, Any]]) -> None:
        from samfed_monai.reports.figures import progress
        from samfed_monai.reports.run_data import read_federation

        last, started = records[-1], time.monotonic()
        if started < self._due and last["round"] + 1 < last["rounds"]:
            return
        picture = progress(read_federation(self.folder / "federation.csv"), last["rounds"])
        if picture is not None:
            write_bytes(self.folder / PICTURE, picture, mode=PUBLIC)
        ended = time.monotonic()
        self._due = ended + (ended - started) / _DRAWING

    def _write_scalars(self, records: Sequence[Mapping[str, Any]]) -> None:
        package = find_spec(TENSORBOARD)
        if package is None or package.origin is None:  # without an origin it is a mere folder, for instance a run's
            return
        from monai.handlers import TensorBoardStatsHandler

        record = records[-1]
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            # of a run that goes on after a stop, what was written of later rounds counts no more
            self._writer = SummaryWriter(str(self.folder / TENSORBOARD), purge_step=record["round"] + 1)
        TensorBoardStatsHandler(summary_writer=self._writer, iteration_log=False).epoch_completed(_engine(record))

    def _track(self, records: Sequence[Mapping[str, Any]]) -> None:
        record = records[-1]
        engine = _engine(record)
        if self._tracker is None:
            for name in ("alembic", "mlflow.store"):  # a new store would be made in twenty lines of log
                logging.getLogger(name).setLevel(logging.WARNING)
            from monai.handlers import MLFlowHandler

            run = read_json(self.folder / "run.json")
            self._tracker = MLFlowHandler(
                tracking_uri=self.mlflow,
                iteration_log=False,
                experiment_name=EXPERIMENT,
                run_name=run_name(self.folder),
                experiment_param={
                    key.replace("#", "/"): str(value)[:_LONGEST] for key, value in flat(run["config"]).items()
                },
            )
            self._tracker.start(engine)
        self._tracker.epoch_completed(engine)
        if record["round"] + 1 == record["rounds"]:
            self._tracker.close()


def run_name(folder: Path) -> str:
    """What a run is called in MLflow: its folder's name, and eight letters of the hash of its path."""
    return f"{folder.resolve().name} {hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]}"


def _engine(record: Mapping[str, Any]) -> Any:
    """An engine at the end of an epoch which is the record's round."""
    from ignite.engine import Engine

    engine = Engine(lambda engine, batch: None)
    engine.state.epoch, engine.state.max_epochs = record["round"] + 1, record["rounds"]
    engine.state.metrics = scalars_of(record)
    return engine
