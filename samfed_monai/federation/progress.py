"""Progress of a run: bars on the terminal, seconds by activity, scalars for TensorBoard."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from samfed_monai.results import round_traffic

logger = logging.getLogger(__name__)


class Clock:
    """Adds up seconds per activity; time is charged to the innermost activity.

    Example::

        clock = Clock()
        with clock("training"):
            with clock("controller"):
                ...  # charged to "controller" only
        clock.seconds["training"]
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._running: list[str] = []
        self._since = 0.0

    @contextmanager
    def __call__(self, activity: str) -> Iterator[None]:
        self._charge()
        self._running.append(activity)
        try:
            yield
        finally:
            self._charge()
            self._running.pop()

    def _charge(self) -> None:
        now = time.perf_counter()
        if self._running:
            activity = self._running[-1]
            self.seconds[activity] = self.seconds.get(activity, 0.0) + now - self._since
        self._since = now


class Progress:
    """Three nested progress bars.

    Args:
        show: True or False; ``None`` shows them only when standard error is a terminal.
    """

    def __init__(self, show: bool | None = None) -> None:
        self._disable = None if show is None else not show

    @contextmanager
    def rounds(self, total: int, done: int) -> Iterator[tqdm]:
        """The bar of the run; ``done`` rounds were finished before. Log lines appear above the bars."""
        loggers = [logging.root, logging.getLogger("samfed_monai")]
        with logging_redirect_tqdm(loggers), self._bar(total, "rounds", 0, initial=done, leave=True) as bar:
            yield bar

    def sites(self, total: int) -> tqdm:
        """The bar of one round's sites."""
        return self._bar(total, "sites", 1)

    @contextmanager
    def iterations(self, engine: Any) -> Iterator[None]:
        """The bar of one engine's iterations; anything that is not an Ignite engine gets none."""
        if not isinstance(engine, Engine):
            yield
            return
        with self._bar(None, "iterations", 2) as bar:

            def advance(engine: Engine) -> None:
                if bar.total is None and engine.state.epoch_length and engine.state.max_epochs:
                    bar.reset(total=(engine.state.max_epochs - engine.state.epoch + 1) * engine.state.epoch_length)
                bar.update()

            with engine.add_event_handler(Events.ITERATION_COMPLETED, advance):
                yield

    def _bar(self, total: int | None, desc: str, position: int, **options: Any) -> tqdm:
        options.setdefault("leave", False)
        return tqdm(total=total, desc=desc, position=position, disable=self._disable, dynamic_ncols=True, **options)


TENSORBOARD = "tensorboard"
"""Name of a run's folder of TensorBoard events, and of the package."""


def scalars_of(record: Mapping[str, Any]) -> dict[str, float]:
    """Scalars of a round's record for TensorBoard, by tag.

    ``dice/<site>`` and ``dice/mean`` (over all validation images), ``terms/<name>/<site>``, ``seconds/<activity>``,
    ``MB/up`` and ``MB/down`` (all sites together, millions of bytes). Missing values have no tag.

    Args:
        record: content of ``round.json``.
    """
    scored = {site: entry["validation"]["dice"] for site, entry in record["sites"].items() if entry["validation"]}
    scalars: dict[str, float | None] = {f"dice/{site}": dice for site, dice in scored.items()}
    scalars["dice/mean"] = record["average"]["validation"]["dice"]
    for site, entry in record["sites"].items():
        scalars |= {f"terms/{name}/{site}": value for name, value in (entry.get("terms") or {}).items()}
    scalars |= {f"seconds/{activity}": value for activity, value in record["seconds"].items()}
    scalars |= {f"MB/{name.removesuffix('_bytes')}": count / 1e6 for name, count in round_traffic(record).items()}
    return {tag: value for tag, value in scalars.items() if value is not None}


class Tracking(AbstractContextManager["Tracking"]):
    """Writes every stored round of a run to TensorBoard. A failure is logged and stops the writing, but never the run.

    Steps are rounds, from 1.

    Args:
        folder: the run's folder; events are added to its ``tensorboard/``.

    Example::

        with Tracking("runs/a") as watching:
            watching(records)
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._writer: Any = None
        package = find_spec(TENSORBOARD)
        self._works = package is not None and package.origin is not None  # without one it is only a run's folder

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._attempt(self._writer.close)

    def __call__(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Writes the last of ``records``, the records of all rounds so far."""
        if self._works:
            self._attempt(partial(self._write, records[-1]))

    def _attempt(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # a broken TensorBoard, a full disk: the round itself is already stored
            self._works, self._writer = False, None  # closing this writer would raise its error again
            logger.warning("%s is no longer written: %s: %s", TENSORBOARD, type(error).__name__, error)

    def _write(self, record: Mapping[str, Any]) -> None:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            # when a run is resumed, events of rounds that are run again are dropped
            self._writer = SummaryWriter(str(self.folder / TENSORBOARD), purge_step=record["round"] + 1)
        for tag, value in scalars_of(record).items():
            self._writer.add_scalar(tag, value, record["round"] + 1)
        self._writer.flush()
