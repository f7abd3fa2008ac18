"""The sites of one process: each message is decoded, answered and encoded, and a site's state kept on its disk."""

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
    """Answers messages for the sites of one process, from bytes to bytes.

    Args:
        make_site: from a site's name, what answers: ``answer(task, message) -> message``, with ``state_dict`` and
            ``load_state_dict``, and ``masks_taken`` (:meth:`.Site.masks_taken`) where it takes soft masks.
        states: from a site's name, the folder of what it keeps between rounds.
    """

    def __init__(self, make_site: Callable[[str], Any], states: Callable[[str], Path]) -> None:
        self._make_site, self._states = make_site, states
        self._sites: dict[str, tuple[Any, SiteState, HeldWeights]] = {}

    def answer(self, name: str, task: Task, payload: bytes, keep: Iterable[int] = ()) -> bytes:
        """The answer's bytes.

        Args:
            name: of the site, which is made when it is first asked.
            task: what it is asked.
            payload: the message's bytes.
            keep: rounds whose states the server may ask for again.

        Raises:
            Exception: whatever the site raises; it goes on from its last state then.
        """
        if name not in self._sites:
            site = self._make_site(name)
            self._sites[name] = site, SiteState(self._states(name), site), HeldWeights()
        site, state, held = self._sites[name]
        try:
            most = getattr(site, "masks_taken", int)  # one that knows of none takes none
            message = held.complete(from_bytes(payload, max_inflated=most))
            if message.extra.get("model") != "teacher":  # its exam comes before round 0 and looks at no network
                state.before(task, message.round)
            answer = to_bytes(site.answer(task, message))
            state.after(task, message.round, keep)
        except Exception:
            state.failed()
            raise
        return answer

    def finalize(self) -> None:
        """Ends all sites."""
        for site, _, _ in self._sites.values():
            site.finalize()


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
            found, hint = f"removed: a site keeps those of the newest {KEPT_RUNS} runs", "start a run of another name"
            raise message_refused("state", found, "this run's state", hint)
        last = round - 1 if task == Task.TRAIN else round
        stored = [number for number in self._stored() if number <= last]
        if not stored or stored[-1] == self.at:
            return
        self.at = None
        self.holder.load_state_dict(safe_load(self._path(stored[-1])))
        self.at = stored[-1]
        logger.info("went to the state after round %d", self.at)

    def after(self, task: Task, round: int, keep: Iterable[int] = ()) -> None:
        """Stores the state that ``task`` of ``round`` left behind, and removes those that are not wanted any more.

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
            with atomic_write(self._path(number)) as stream:
                tensor_file.write_state(stream, state)
        self.at = number
        if number == PREPARED:
            return  # a run that goes on is prepared again, and its states are still wanted
        stored = self._stored()
        # for a round that this site missed, the newest one before it
        wanted = {max((other for other in stored if other <= asked), default=PREPARED) for asked in (*keep, number - 1)}
        for other in stored:
            if other not in wanted | {PREPARED, number}:
                self._path(other).unlink(missing_ok=True)

    def failed(self) -> None:
        """A task failed half-way: the holder's state is not known."""
        self.at = None

    def _stored(self) -> list[int]:
        return sorted(int(path.stem) for path in self.folder.glob("*.safetensors"))

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:03d}.safetensors"


#: Runs whose states a site keeps, the one that runs included, and seconds for which a run counts as running.
KEPT_RUNS, IN_USE = 3, 24 * 3600.0
#: File in place of states that were removed: a request for them is refused.
REMOVED = "removed"


def forget_old_runs(states: Path, run: str) -> None:
    """Removes the states of all but the newest :data:`KEPT_RUNS` runs; their logs stay.

    Args:
        states: folder with one folder per run, and in it one per site.
        run: the one that begins; it is kept, whatever its age. A run whose files changed within :data:`IN_USE` is, too.
    """
    found = {folder: list(folder.glob("*/*.safetensors")) for folder in states.iterdir() if folder.name != run}
    used = {folder: max(path.stat().st_mtime for path in paths) for folder, paths in found.items() if paths}
    for folder in sorted(used, key=used.__getitem__, reverse=True)[KEPT_RUNS - 1 :]:
        if time.time() - used[folder] > IN_USE:
            for path in found[folder]:
                (path.parent / REMOVED).touch(mode=0o600)
                path.unlink(missing_ok=True)
            logger.info("removed the states of run %s (the newest %d are kept)", folder.name, KEPT_RUNS)
