"""Rounds on disk: each is written atomically, with checksums of its files."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samfed_monai.core import tensor_file
from samfed_monai.core.errors import Refused, Stopped
from samfed_monai.core.io import PUBLIC, as_file_name, atomic_write, read_json, safe_load, sync_folder, write_json
from samfed_monai.core.run_log import round_folders

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

WEIGHTS = "global.safetensors"
CLIENTS = "clients"
SERVER = "server.safetensors"
#: Number of what comes before round 0: the network that a run begins with, which is scored as rounds are.
START = -1
#: Key and value of ``round.json`` where the sites' states of the round are with the sites.
STATES, AT_SITES = "states", "at the sites"
_RESTORE = "put the file back from a copy of the run folder and go on, or run again in a new output_dir"


def state_file(site: str) -> str:
    """Name of the file in a round's ``clients`` that holds a site's state."""
    return f"{as_file_name(site)}.safetensors"


class RoundRecords(Sequence[dict[str, Any]]):
    """``round.json`` of a run's rounds, each read when it is asked for: memory is flat however long the run is.

    The last one is kept, which is looked at several times while the next round runs.

    Args:
        store: of the run.
        count: of rounds that are there, from round 0 on.
    """

    def __init__(self, store: RoundStore, count: int = 0) -> None:
        self._store, self._count = store, count
        self._last: tuple[int, dict[str, Any]] | None = None

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict[str, Any]:  # type: ignore[override] # no slices
        """A record.

        Raises:
            IndexError: there is no such round.
            Stopped: it is missing or damaged.
        """
        number = range(self._count)[index]
        if self._last is None or self._last[0] != number:
            record = self._store.record(number)
            if number < self._count - 1:
                return record
            self._last = number, record
        return self._last[1]

    def append(self, record: dict[str, Any]) -> None:
        """Adds the round after the last one, which was stored."""
        self._last, self._count = (self._count, record), self._count + 1


class RoundStore:
    """The folder ``rounds/`` of a run.

    ``rounds/NNN/`` holds ``global.safetensors`` (the model after aggregation), ``clients/<site>.safetensors`` (what a
    site needs to go on), ``server.safetensors`` (what a server that trains needs beside the model) and ``round.json``,
    which is written last and has the digests of the others. ``rounds/start`` has the network that the run began with,
    where it was scored. Everything is written into a temporary folder that is
    renamed when it is complete and on disk.

    Args:
        folder: ``<run>/rounds``.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._full: set[int] | None = None  # rounds that may hold more than their record; None: not looked at yet

    def clean(self) -> None:
        """Removes what killed writers left behind."""
        for leftover in self.folder.glob(".*.tmp"):
            shutil.rmtree(leftover, ignore_errors=True)

    def write(
        self,
        round: int,
        weights: Mapping[str, Tensor],
        record: Mapping[str, Any],
        save_state: Callable[[Path], dict[str, str]] | None = None,
        server_state: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Any]:
        """Stores a round; returns the content of its ``round.json``.

        Args:
            round: its number, or :data:`START`.
            weights: the model after aggregation.
            record: content of ``round.json``; ``files`` is added.
            save_state: called with the folder for the sites' states; returns file names and their digests.
            server_state: what the server needs to go on beside the model; nothing is written for none.

        Raises:
            OSError: the disk is full or fails; the rounds before this one are untouched.
        """
        final, temporary = self.path(round), self.folder / f".{round:03d}.{os.getpid()}.tmp"
        try:
            temporary.mkdir(parents=True)
            with atomic_write(temporary / WEIGHTS, mode=PUBLIC) as stream:
                files = {WEIGHTS: tensor_file.write(stream, weights, {"round": str(round)})}
            if server_state:
                with atomic_write(temporary / SERVER, mode=PUBLIC) as stream:
                    files[SERVER] = tensor_file.write_state(stream, server_state)
            if save_state is not None:
                (temporary / CLIENTS).mkdir(mode=0o700)
                states = save_state(temporary / CLIENTS)
                files.update({f"{CLIENTS}/{name}": digest for name, digest in states.items()})
            content = {**record, "files": files}
            write_json(temporary / "round.json", content, mode=PUBLIC)
            if final.exists():
                shutil.rmtree(final)
            os.replace(temporary, final)
            sync_folder(self.folder)
            if self._full is not None:
                self._full.add(round)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        return content

    def rounds(self) -> list[int]:
        """Numbers of the rounds that are there, intact or not, in order."""
        return list(round_folders(self.folder))

    def latest(self) -> dict[str, Any] | None:
        """``round.json`` of the last intact round, or ``None`` when none was stored.

        A damaged round is set aside as ``NNN.torn`` with a line in the log, and the one before it is tried (fault 52).

        Raises:
            Stopped: rounds were stored and none of them is intact.
        """
        numbers = self.rounds()
        for number in reversed(numbers):
            try:
                record = self.record(number)
                damaged = [name for name in record["files"] if not self._is_intact(number, name, record)]
            except (Stopped, OSError):
                damaged = ["round.json"]
            if not damaged:
                return record
            torn = self.folder / f"{number:03d}.torn"
            shutil.rmtree(torn, ignore_errors=True)
            os.replace(self.path(number), torn)
            logger.warning(
                "round %d is damaged (%s); set aside as %s, going back one round", number, damaged[0], torn.name
            )
            if number - 1 not in numbers or not (self.path(number - 1) / WEIGHTS).is_file():
                break
        if numbers:
            raise Stopped(f"no intact round is left in {self.folder}", "start again in another output_dir")
        return None

    def start(self) -> dict[str, Any] | None:
        """``round.json`` of the network that the run began with; ``None`` where it was not scored.

        Raises:
            Stopped: it is damaged.
        """
        return self.record(START) if self.path(START).is_dir() else None

    def records(self, last: int) -> RoundRecords:
        """``round.json`` of rounds 0 to ``last``, in order; -1: none.

        Raises:
            Stopped: one of them is missing or damaged; every one that is, is named (fault 83).
        """
        damaged = []
        for number in range(last + 1):
            try:
                self.record(number)
            except Stopped as stopped:
                damaged.append(stopped.reason)
        if damaged:
            raise Stopped("; ".join(damaged), _RESTORE)
        return RoundRecords(self, last + 1)

    def record(self, number: int) -> dict[str, Any]:
        """``round.json`` of a round.

        Raises:
            Stopped: it is missing or damaged.
        """
        path = self.path(number) / "round.json"
        try:
            record = read_json(path)
        except Refused as refused:
            found = "; ".join(f"{problem.where}: {problem.found}" for problem in refused.problems)
            raise Stopped(f"the record of round {number} cannot be read ({path}: {found})", _RESTORE) from None
        if (
            not isinstance(record, dict)
            or not isinstance(record.get("files"), dict)
            or not all(isinstance(digest, str) for digest in record["files"].values())
            or record.get("round") != number
        ):
            raise Stopped(f"the record of round {number} is not one ({path})", _RESTORE)
        return record

    def weights(self, round: int) -> dict[str, Tensor]:
        """The stored model of a round, checked against its SHA-256.

        Raises:
            Stopped: it was removed or is damaged.
        """
        self._require_intact(round, WEIGHTS, "the model")
        return safe_load(self.path(round) / WEIGHTS)

    def server_state(self, round: int) -> dict[str, Tensor]:
        """What :meth:`write` was given as ``server_state``; empty where there was none.

        Raises:
            Stopped: it is damaged.
        """
        path = self.path(round) / SERVER
        if not path.is_file():
            return {}
        self._require_intact(round, SERVER, "the server's state")
        return safe_load(path)

    def clients(self, round: int) -> Path:
        """Folder of the sites' states of a round; those that lie here are checked against their digests.

        Raises:
            Stopped: one of them is damaged.
        """
        folder = self.path(round)
        there = sorted((folder / CLIENTS).glob("*"))
        if there and not any(name.startswith(f"{CLIENTS}/") for name in self.record(round)["files"]):
            shutil.rmtree(folder / CLIENTS)  # delete_states was killed on its way
            there = []
        for path in there:
            self._require_intact(round, f"{CLIENTS}/{path.name}", f"the state of {path.stem}")
        return folder / CLIENTS

    def prune(self, keep_models: set[int], keep_states: set[int]) -> None:
        """Removes the models and site states of all other rounds; ``round.json`` always stays.

        All folders are looked through once; from then on only those that hold something, so that the thousandth round
        costs what the first did.
        """
        for number in sorted({START, *self.rounds()} if self._full is None else self._full):
            if number not in keep_models:
                (self.path(number) / WEIGHTS).unlink(missing_ok=True)
            if number not in keep_states:
                shutil.rmtree(self.path(number) / CLIENTS, ignore_errors=True)
                (self.path(number) / SERVER).unlink(missing_ok=True)
        self._full = keep_models | keep_states

    def delete_states(self) -> None:
        """Removes the sites' states of every round: no run goes on from them. Rounds stay intact."""
        for number in self.rounds():
            record = self.record(number)
            files = {name: digest for name, digest in record["files"].items() if not name.startswith(f"{CLIENTS}/")}
            if files != record["files"]:
                write_json(self.path(number) / "round.json", {**record, "files": files}, mode=PUBLIC)
            shutil.rmtree(self.path(number) / CLIENTS, ignore_errors=True)

    def say_where_states_are(self) -> None:
        """Notes in rounds whose states are wanted and not here that sites keep them, for whoever gets a copy."""
        for number in self.rounds():
            folder = self.path(number) / CLIENTS
            if folder.is_dir() and not any(folder.iterdir()):
                write_json(self.path(number) / "round.json", {**self.record(number), STATES: AT_SITES}, mode=PUBLIC)

    def path(self, round: int) -> Path:
        """Folder of a round, or of :data:`START`."""
        return self.folder / ("start" if round == START else f"{round:03d}")

    def _require_intact(self, round: int, name: str, what: str) -> None:
        if not self._is_intact(round, name, self.record(round)):
            path = self.path(round) / name
            raise Stopped(f"{what} of round {round} is missing or damaged ({path})", "run again in a new output_dir")

    def _is_intact(self, round: int, name: str, record: Mapping[str, Any]) -> bool:
        path, digest = self.path(round) / name, record["files"].get(name)
        return digest is not None and path.is_file() and tensor_file.digest_like(path, digest) == digest
