"""The sites of one process: messages are decoded, handled and encoded, and each site's state is kept on its disk."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from samfed_monai.core import tensor_file
from samfed_monai.core.io import atomic_write, safe_load
from samfed_monai.protocol.message import from_bytes, message_refused, to_bytes
from samfed_monai.protocol.transport import HeldWeights, Task

logger = logging.getLogger(__name__)


class SiteWorker:
    """Handles messages for the sites of one process, from bytes to bytes.

    Args:
        make_site: makes a site from its name: an object with ``answer(task, message) -> message``, ``state_dict`` and
            ``load_state_dict``, and ``max_mask_pixels`` (:meth:`.Site.max_mask_pixels`) if it accepts soft masks.
        states: returns the folder of a site's states from its name.
    """

    def __init__(self, make_site: Callable[[str], Any], states: Callable[[str], Path]) -> None:
        self._make_site, self._states = make_site, states
        self._sites: dict[str, tuple[Any, SiteState, HeldWeights]] = {}

    def answer(self, name: str, task: Task, payload: bytes, keep: Iterable[int] = ()) -> bytes:
        """Returns the bytes of a site's reply.

        Args:
            name: of the site, which is made at its first request.
            task: the site's task.
            payload: the message's bytes.
            keep: rounds whose states the server may ask for again.

        Raises:
            Exception: whatever the site raises; the site then continues from its last state.
        """
        if name not in self._sites:
            site = self._make_site(name)
            self._sites[name] = site, SiteState(self._states(name), site), HeldWeights()
        site, state, held = self._sites[name]
        try:
            max_masks = getattr(site, "max_mask_pixels", int)  # a site without this method accepts none
            message = held.complete(from_bytes(payload, max_inflated=max_masks))
            if message.extra.get("model") != "teacher":  # it is scored before round 0, without the site's network
                state.restore(task, message.round)
            reply = to_bytes(site.answer(task, message))
            state.store(task, message.round, keep)
        except Exception:
            state.failed()
            raise
        return reply

    def finalize(self) -> None:
        """Ends all sites."""
        for site, _, _ in self._sites.values():
            site.finalize()


#: The state after preparation, before round 0.
PREPARED = -1


def stored_states(folder: Path) -> dict[int, Path]:
    """A site's states in a folder, by round in ascending order."""
    files = {path.stem: path for path in folder.glob("*.safetensors")}
    return dict(sorted((int(name), files[name]) for name in files if name.removeprefix("-").isdecimal()))


class SiteState:
    """The round of a site's current state, and the files of the states of other rounds.

    Training of round r continues from the newest state before r, evaluation of round r uses the newest one up to r: so
    a round that was trained but never stored by the server is dropped, and a round that this site missed is skipped.
    The server does not have to name a state.

    Args:
        folder: folder of the files.
        site: the object that has the state.
    """

    def __init__(self, folder: str | Path, site: Any) -> None:
        self.folder, self.site = Path(folder), site
        self.loaded_round: int | None = None

    def restore(self, task: Task, round: int) -> None:
        """Loads the state that ``task`` of ``round`` starts from into the site.

        Raises:
            MessageRefused: the states of this run were removed (:func:`remove_old_states`).
        """
        if task not in (Task.TRAIN, Task.EVALUATE):
            return
        removed = self.folder / REMOVED
        if task == Task.TRAIN and round == 0:
            removed.unlink(missing_ok=True)
        if removed.exists():
            found, hint = f"none (a site keeps states of its newest {KEPT_RUNS} runs)", "start a run with another name"
            raise message_refused("state", found, "this run's state", hint)
        last_round = round - 1 if task == Task.TRAIN else round
        stored = [number for number in stored_states(self.folder) if number <= last_round]
        if not stored or stored[-1] == self.loaded_round:
            return
        self.loaded_round = None
        self.site.load_state_dict(safe_load(self._path(stored[-1])))
        self.loaded_round = stored[-1]
        logger.info("restored the state after round %d", self.loaded_round)

    def store(self, task: Task, round: int, keep: Iterable[int] = ()) -> None:
        """Stores the state after ``task`` of ``round``, and removes states that are no longer needed.

        Args:
            task: the finished task.
            round: its round.
            keep: rounds whose states the server may ask for again.
        """
        if task not in (Task.TRAIN, Task.PREPARE):
            return
        number = round if task == Task.TRAIN else PREPARED
        state = self.site.state_dict()
        if state:
            with atomic_write(self._path(number)) as stream:
                tensor_file.write_state(stream, state)
        self.loaded_round = number
        if number == PREPARED:
            return  # a resumed run is prepared again, and still needs its states
        stored = stored_states(self.folder)
        # for a round that this site missed, the newest one before it
        needed = {max((other for other in stored if other <= last), default=PREPARED) for last in (*keep, number - 1)}
        for other in stored.keys() - needed - {PREPARED, number}:
            stored[other].unlink(missing_ok=True)

    def failed(self) -> None:
        """Marks the current state as unknown after a failed task."""
        self.loaded_round = None

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:03d}.safetensors"


#: Number of runs whose states a site keeps, with the current one, and seconds for which a run counts as in use.
KEPT_RUNS, IN_USE = 3, 24 * 3600.0
#: File in place of removed states: a request for them is refused.
REMOVED = "removed"


def remove_old_states(states: Path, run: str) -> None:
    """Removes the states of all but the newest :data:`KEPT_RUNS` runs; their logs stay.

    Args:
        states: folder with one folder per run, and in it one per site.
        run: the run that starts, which is always kept. So is a run whose files changed within :data:`IN_USE`.
    """
    files_by_run = {folder: list(folder.glob("*/*.safetensors")) for folder in states.iterdir() if folder.name != run}
    last_use = {folder: max(path.stat().st_mtime for path in paths) for folder, paths in files_by_run.items() if paths}
    for folder in sorted(last_use, key=last_use.__getitem__, reverse=True)[KEPT_RUNS - 1 :]:
        if time.time() - last_use[folder] > IN_USE:
            for path in files_by_run[folder]:
                (path.parent / REMOVED).touch(mode=0o600)
                path.unlink(missing_ok=True)
            logger.info("removed the states of run %s (the newest %d are kept)", folder.name, KEPT_RUNS)
