"""A site's state between rounds, on its own disk: a fresh process goes on from the right one."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from samfed_monai.core.errors import Problem
from samfed_monai.core.io import atomic_write, safe_load
from samfed_monai.federation import tensor_file
from samfed_monai.federation.envelope import MessageRefused
from samfed_monai.federation.transport import Task
from samfed_monai.flare.old_runs import KEPT_RUNS, REMOVED

logger = logging.getLogger(__name__)

#: The state after preparation, before round 0.
PREPARED = -1


class SiteState:
    """Which round's state a site is at, and the files of the others.

    Training of round r goes on from the newest state before r, evaluation of round r looks at the newest one up to r:
    so a round that was trained and never stored by the server is forgotten, and a round that this site missed is
    stepped over. The server need not say which state it means.

    Args:
        folder: where the files are.
        holder: whose state it is.
    """

    def __init__(self, folder: str | Path, holder: Any) -> None:
        self.folder, self.holder = Path(folder), holder
        self.at: int | None = None

    def before(self, task: Task, round: int) -> None:
        """Takes the holder to the state that ``task`` of ``round`` starts from.

        Raises:
            MessageRefused: the states of this run were removed (:func:`forget_old_runs`).
        """
        if task not in (Task.TRAIN, Task.EVALUATE):
            return
        removed = self.folder / REMOVED
        if task == Task.TRAIN and round == 0:
            removed.unlink(missing_ok=True)
        if removed.exists():
            found, mend = f"removed: a site keeps those of the newest {KEPT_RUNS} runs", "start a run of another name"
            raise MessageRefused([Problem("state", found=found, expected="this run's state", mend=mend)])
        last = round - 1 if task == Task.TRAIN else round
        stored = [number for number in self._stored() if number <= last]
        wanted = max(stored, default=PREPARED)
        if wanted == self.at or not stored:
            return
        self.at = None
        self.holder.load_state_dict(safe_load(self._path(wanted)))
        self.at = wanted
        logger.info("went to the state after round %d", wanted)

    def after(self, task: Task, round: int, keep: Iterable[int] = ()) -> None:
        """Stores the state that ``task`` of ``round`` left behind, and removes those that nobody wants any more.

        Args:
            task: what was done.
            round: of it.
            keep: rounds whose states the server may ask for again.
        """
        if task not in (Task.TRAIN, Task.PREPARE):
            return
        number = round if task == Task.TRAIN else PREPARED
        state = self.holder.state_dict()
        if state:
            with atomic_write(self._path(number), mode=0o600) as stream:
                tensor_file.write_state(stream, state)
        self.at = number
        if number == PREPARED:
            return  # a run that goes on is prepared again, and its states are still wanted
        stored = self._stored()
        # a round that this site missed is stood for by the newest one before it
        wanted = {max((other for other in stored if other <= asked), default=PREPARED) for asked in (*keep, number - 1)}
        for other in stored:
            if other not in wanted | {PREPARED, number}:
                self._path(other).unlink(missing_ok=True)

    def failed(self) -> None:
        """A task failed half-way: where the holder stands is not known."""
        self.at = None

    def _stored(self) -> list[int]:
        return sorted(int(path.stem) for path in self.folder.glob("*.safetensors"))

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:03d}.safetensors"
