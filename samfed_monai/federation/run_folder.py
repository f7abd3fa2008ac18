"""The folder of a run: its settings, its rounds, one table, and a lock while a process works on it.

Each round is written atomically, with checksums of its files.
"""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, TextIO

from torch import Tensor

from samfed_monai.config.parse import MISSING
from samfed_monai.core import io, tensor_file
from samfed_monai.core.errors import DISK_FULL, Problems, Stopped, refused
from samfed_monai.core.io import PUBLIC, to_csv
from samfed_monai.core.run_log import NO_ROUNDS, round_folders, run_record
from samfed_monai.core.text import clipped
from samfed_monai.metrics import pool, worst
from samfed_monai.metrics.quality import Calibration, Group
from samfed_monai.protocol.message import Message
from samfed_monai.protocol.transport import Failure, Traffic
from samfed_monai.results import BYTES, RESTORE, read_round, round_traffic

logger = logging.getLogger(__name__)

LOCK = ".lock"
"""Lock file of a run's folder; it has the process id of its owner and is not removed."""

#: Seconds to wait for a lock: a killed process frees gigabytes of memory before its files.
PATIENCE = 3.0

WEIGHTS = "global.safetensors"

CLIENTS = "clients"

SERVER = "server.safetensors"

#: Round number of a run's initial network, which is scored like the rounds.
START = -1

#: Key and value of ``round.json`` if the sites keep their states of the round themselves.
STATES, AT_SITES = "states", "at the sites"

#: Caveat on a run whose teacher changed.
_OTHER_TEACHER = "The teacher was {} when this run began and is {} now; the rounds before used other soft masks."

#: Columns of ``federation.csv``, one row per round and site, followed by one ``term_<name>`` per loss term.
#: Scores are those of the aggregated model on the site's validation images; bytes count training and validation.
COLUMNS = (
    "round", "site", "status", "reason", "n", "dice", "iou", "hd95", "images",
    "empty_both", "empty_prediction", "empty_label", "expected_dice", "seconds", "up_bytes", "down_bytes",
)  # fmt: skip


class RunFolder(AbstractContextManager["RunFolder"]):
    """The folder of a run: ``run.json``, ``rounds/``, ``federation.csv`` and a lock.

    Args:
        path: the folder; it is created.

    Example::

        with RunFolder("runs/a").open(config, seeds={"seed": 0}) as folder:
            ...
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.store = RoundStore(self.path / "rounds")
        self.bests = BestRounds()
        self._terms: list[str] = []  # columns of the table beside COLUMNS
        self._written = 0  # rounds that this process has written into the table

    def open(
        self,
        config: Mapping[str, Any],
        *,
        versions: Mapping[str, str] | None = None,
        hashes: Mapping[str, str] | None = None,
        seeds: Mapping[str, int] | None = None,
    ) -> RunFolder:
        """Locks the folder, and writes ``run.json`` or compares the existing one with the arguments.

        If no round of an earlier run was completed, there is nothing to resume: ``run.json`` is replaced.

        Args:
            config: the resolved configuration as JSON content, without machine paths.
            versions: of packages; a difference is logged, because results may then differ in the last bits.
            hashes: of input files (data list, weights, adapter); a difference is refused.
            seeds: by name; a difference is refused.

        Raises:
            Refused: the folder cannot be written (fault 54), another run holds it (51), it has rounds or results but no
                ``run.json``, or results but no rounds, or it belongs to a run with another configuration; every
                differing key is named.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            io.require_writable(self.path)
        except OSError as error:
            if error.errno in DISK_FULL:
                raise
            found = f"a folder that cannot be written ({os.strerror(error.errno) if error.errno else error})"
            hint = "choose another output_dir, or fix its permissions"
            raise refused(self.path, found=found, expected="a writable folder", hint=hint) from None
        take_lock(self.path)
        try:
            content: dict[str, Any] = {
                "schema": 1,
                "run": secrets.token_hex(8),
                "config_hash": io.canonical_hash(config),
                "config": dict(config),
                "hashes": dict(hashes or {}),
                "seeds": dict(seeds or {}),
                "versions": dict(versions or {}),
            }
            self.store.clean()
            shutil.rmtree(self.path / ".states", ignore_errors=True)  # of processes of sites, if it was killed
            has_results = (self.path / "results.json").exists() or any(self.store.folder.glob("*"))
            path = self.path / "run.json"
            if has_results and not path.exists():
                expected, found = "settings of the rounds or results in this folder", "no such file"
                hint = "restore it from a copy of the run folder, or choose another output_dir"
                raise refused(path, found=found, expected=expected, hint=hint)
            if has_results:
                record = run_record(self.path)
                self._compare(record, content)
                if not any(self.store.folder.glob("*")):
                    raise refused(self.store.folder, "no rounds", "the rounds of results.json", NO_ROUNDS)
            else:
                record = content
                io.write_json(path, record, mode=PUBLIC)
            self.store.run = str(record.get("run", ""))
        except BaseException:
            self.close()
            raise
        return self

    def close(self) -> None:
        """Releases the lock of an open folder."""
        _open_locks.pop((self.path / LOCK).resolve()).close()

    def __exit__(self, *_: object) -> None:
        self.close()

    def record_teacher(self, sha256: str) -> list[str]:
        """Notes the teacher of the run's beginning in ``run.json``; returns a caveat, also logged, on another one.

        A teacher that is fitted again, for instance because the cache was lost, may differ in its last bits.
        """
        content = run_record(self.path)
        if (first := content.setdefault("teacher", sha256)) == sha256:
            io.write_json(self.path / "run.json", content, mode=PUBLIC)
            return []
        caveat = _OTHER_TEACHER.format(first[:12], sha256[:12])
        logger.warning("%s", caveat)
        return [caveat]

    def write_round(
        self,
        weights: Mapping[str, Tensor],
        records: RoundRecords,
        record: Mapping[str, Any],
        save_state: Callable[[Path], dict[str, str]] | None = None,
        *,
        server_state: Mapping[str, Tensor] | None = None,
        keep_best_states: bool = False,
    ) -> dict[str, Any]:
        """Stores the round after ``records``, adds it to them and to ``federation.csv``, and removes old files.

        It keeps the models of the last two rounds and of the best round as of each of them, so that going back one
        round finds everything; the initial network; the sites' states of the last two rounds, and with
        ``keep_best_states`` of those best rounds (where a site's state holds its own network); every ``round.json``.

        Returns:
            The content of its ``round.json``.
        """
        last = len(records)
        stored = self.store.write(last, weights, record, save_state, server_state)
        records.append(stored)
        self.write_table(records)
        recent = {last, max(last - 1, 0)}
        self.bests.follow(records, self.store.start())
        bests = {self.bests.now, self.bests.before, START}
        self.store.prune(keep_models=recent | bests, keep_states=recent | bests if keep_best_states else recent)
        return stored

    def finish(self, records: Sequence[Mapping[str, Any]], *, keep_states: bool) -> None:
        """Removes the models and states of a finished run except those of the best and the last round.

        Args:
            records: of all rounds.
            keep_states: keep the sites' states of both rounds (where a site's state holds its network).
        """
        rounds = {best_round(records, self.store.start()), len(records) - 1}
        self.store.prune(keep_models=rounds, keep_states=rounds)
        if keep_states:
            self.store.record_states_at_sites()
        else:
            self.store.delete_states()

    def write_table(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Writes ``federation.csv`` from the records of all rounds.

        If this process has written it up to the round before, only the last round's rows are appended. Otherwise, or if
        a new loss term needs a column, the whole table is written.
        """
        path, rows = self.path / "federation.csv", _rows(records[-1])
        known = all(name in COLUMNS or name in self._terms for row in rows for name in row)
        if self._written == len(records) - 1 > 0 and known and path.is_file():
            io.append_line(path, to_csv([*COLUMNS, *self._terms], rows).partition("\n")[2].rstrip("\n"), mode=PUBLIC)
        else:  # records are read twice instead of all held in memory
            columns = {name for record in records for row in _rows(record) for name in row}
            self._terms = sorted(columns.difference(COLUMNS))
            rows_of_all = (row for record in records for row in _rows(record))
            io.write_text(path, to_csv([*COLUMNS, *self._terms], rows_of_all), mode=PUBLIC)
        self._written = len(records)

    def _compare(self, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
        problems = Problems()
        for part in ("config", "hashes", "seeds"):
            before, now = (_flat(run.get(part, {}), part) for run in (old, new))
            for key in sorted(before.keys() | now.keys()):
                if before.get(key, MISSING) != now.get(key, MISSING):
                    was, found = (clipped(repr(each[key]), 80) if key in each else "nothing" for each in (before, now))
                    hint = "resume with the old value, or choose another output_dir"
                    if key == "config#rounds":
                        hint += "; there, --start-from RUN continues from this run's model"
                    where = f"{self.path.name} -> {key.replace('config#client#', 'config#')}"  # as it is typed
                    problems.add(where, found=found, expected=f"{was}, as in run.json", hint=hint)
        problems.refuse_if_any()
        for name, version in new["versions"].items():
            if (was := old.get("versions", {}).get(name)) != version:
                logger.warning("%s was %s when this run began and is %s now: last bits may differ", name, was, version)


class RoundStore:
    """The folder ``rounds/`` of a run.

    ``rounds/NNN/`` holds ``global.safetensors`` (the model after aggregation), ``clients/<site>.safetensors`` (a site's
    state), ``server.safetensors`` (the state of a server that trains, beside the model) and ``round.json``, which is
    written last and has the digests of the others. ``rounds/start`` has the initial network, if it was scored.
    Everything is written into a temporary folder that is renamed when it is complete and on disk.

    Args:
        folder: ``<run>/rounds``.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        #: The run's random name, of ``run.json``; rounds of another run are refused. Empty if it is not known.
        self.run = ""
        self._unpruned: set[int] | None = None  # rounds that may hold more than their record; None: not listed yet

    def clean(self) -> None:
        """Removes temporary folders that killed processes left behind."""
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
            server_state: the server's state beside the model; no file is written without one.

        Raises:
            OSError: the disk is full or fails; the rounds before this one are untouched.
        """
        final, temporary = self.path(round), self.folder / f".{round:03d}.{os.getpid()}.tmp"
        try:
            temporary.mkdir(parents=True)
            with io.atomic_write(temporary / WEIGHTS, mode=PUBLIC) as stream:
                files = {WEIGHTS: tensor_file.write(stream, weights, {"round": str(round)})}
            if server_state:
                with io.atomic_write(temporary / SERVER, mode=PUBLIC) as stream:
                    files[SERVER] = tensor_file.write_state(stream, server_state)
            if save_state is not None:
                (temporary / CLIENTS).mkdir(mode=0o700)
                files.update({f"{CLIENTS}/{name}": digest for name, digest in save_state(temporary / CLIENTS).items()})
            content = {**record, "round": round, **({"run": self.run} if self.run else {}), "files": files}
            io.write_json(temporary / "round.json", content, mode=PUBLIC)
            if final.exists():
                shutil.rmtree(final)
            os.replace(temporary, final)
            io.sync_folder(self.folder)
            if self._unpruned is not None:
                self._unpruned.add(round)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        return content

    def rounds(self) -> list[int]:
        """Numbers of the stored rounds, intact or not, in order."""
        return list(round_folders(self.folder))

    def latest(self) -> dict[str, Any] | None:
        """``round.json`` of the last intact round, or ``None`` if no round was stored.

        A damaged round is renamed to ``NNN.torn`` and logged, and the one before it is tried (fault 52).

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
            logger.warning("round %d is damaged (%s); moved to %s, going back one round", number, damaged[0], torn.name)
            if number - 1 not in numbers or not (self.path(number - 1) / WEIGHTS).is_file():
                break
        if numbers:
            raise Stopped(f"no intact round is left in {self.folder}", "start again in another output_dir")
        return None

    def start(self) -> dict[str, Any] | None:
        """``round.json`` of the run's initial network; ``None`` if it was not scored.

        Raises:
            Stopped: it is damaged.
        """
        return self.record(START) if self.path(START).is_dir() else None

    def records(self, last: int) -> RoundRecords:
        """``round.json`` of rounds 0 to ``last``, in order; -1: none.

        Raises:
            Stopped: some of them are missing or damaged; all of these are named (fault 83).
        """
        damaged = []
        for number in range(last + 1):
            try:
                self.record(number)
            except Stopped as stopped:
                damaged.append(stopped.reason)
        if damaged:
            raise Stopped("; ".join(damaged), RESTORE)
        return RoundRecords(self, last + 1)

    def record(self, number: int) -> dict[str, Any]:
        """``round.json`` of a round.

        Raises:
            Stopped: it is missing or damaged.
            Refused: it belongs to another run.
        """
        return read_round(self.path(number), number, self.run)

    def weights(self, round: int) -> dict[str, Tensor]:
        """The stored model of a round, checked against its SHA-256.

        Raises:
            Stopped: it was removed or is damaged.
        """
        return io.safe_load(self.intact(round, WEIGHTS, "the model"))

    def server_state(self, round: int) -> dict[str, Tensor]:
        """The ``server_state`` that :meth:`write` stored; empty if there was none.

        Raises:
            Stopped: it is damaged.
        """
        stored = (self.path(round) / SERVER).is_file()
        return io.safe_load(self.intact(round, SERVER, "the server's state")) if stored else {}

    def clients(self, round: int) -> Path:
        """Folder of the sites' states of a round; the states in it are checked against their digests.

        Raises:
            Stopped: one of them is damaged.
        """
        folder = self.path(round)
        states = sorted((folder / CLIENTS).glob("*"))
        if states and not any(name.startswith(f"{CLIENTS}/") for name in self.record(round)["files"]):
            shutil.rmtree(folder / CLIENTS)  # delete_states was interrupted
            states = []
        for path in states:
            self.intact(round, f"{CLIENTS}/{path.name}", f"the state of {path.stem}")
        return folder / CLIENTS

    def prune(self, keep_models: set[int], keep_states: set[int]) -> None:
        """Removes the models and states of all other rounds; ``round.json`` always stays.

        All folders are visited the first time, later only those that still hold files, so that the thousandth round
        costs no more than the first.
        """
        for number in sorted({START, *self.rounds()} if self._unpruned is None else self._unpruned):
            if number not in keep_models:
                (self.path(number) / WEIGHTS).unlink(missing_ok=True)
            if number not in keep_states:
                shutil.rmtree(self.path(number) / CLIENTS, ignore_errors=True)
                (self.path(number) / SERVER).unlink(missing_ok=True)
        self._unpruned = keep_models | keep_states

    def delete_states(self) -> None:
        """Removes the sites' states of every round, when no run will resume from them. Rounds stay intact."""
        for number in self.rounds():
            record = self.record(number)
            files = {name: digest for name, digest in record["files"].items() if not name.startswith(f"{CLIENTS}/")}
            if files != record["files"]:
                io.write_json(self.path(number) / "round.json", {**record, "files": files}, mode=PUBLIC)
            shutil.rmtree(self.path(number) / CLIENTS, ignore_errors=True)

    def record_states_at_sites(self) -> None:
        """Notes in ``round.json`` that sites keep their states, if the folder of states is kept but empty."""
        for number in self.rounds():
            folder = self.path(number) / CLIENTS
            if folder.is_dir() and not any(folder.iterdir()):
                io.write_json(self.path(number) / "round.json", {**self.record(number), STATES: AT_SITES}, mode=PUBLIC)

    def path(self, round: int) -> Path:
        """Folder of a round, or of :data:`START`."""
        return self.folder / ("start" if round == START else f"{round:03d}")

    def intact(self, round: int, name: str, what: str) -> Path:
        """Path of a file of a round, checked against its digest.

        Args:
            round: number of the round.
            name: path in the round's folder.
            what: the file's description in the message.

        Raises:
            Stopped: it was removed or is damaged.
        """
        path = self.path(round) / name
        if not self._is_intact(round, name, self.record(round)):
            raise Stopped(f"{what} of round {round} is missing or damaged ({path})", "run again in a new output_dir")
        return path

    def _is_intact(self, round: int, name: str, record: Mapping[str, Any]) -> bool:
        path, digest = self.path(round) / name, record["files"].get(name)
        return digest is not None and path.is_file() and tensor_file.digest_like(path, digest) == digest


class RoundRecords(Sequence[dict[str, Any]]):
    """``round.json`` of a run's rounds, each read on access, so that memory does not grow with the length of the run.

    The last one that was added is cached, since it is read several times while the next round runs.

    Args:
        store: of the run.
        count: number of stored rounds, from round 0 on.
    """

    def __init__(self, store: RoundStore, count: int = 0) -> None:
        self._store, self._count, self._last = store, count, (-1, dict[str, Any]())

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict[str, Any]:  # type: ignore[override] # no slices
        """Returns the record of a round.

        Raises:
            IndexError: there is no such round.
            Stopped: it is missing or damaged.
        """
        number = range(self._count)[index]
        return self._last[1] if self._last[0] == number else self._store.record(number)

    def append(self, record: dict[str, Any]) -> None:
        """Adds the record of the round after the last one, which is already stored."""
        self._last, self._count = (self._count, record), self._count + 1


def state_file(site: str) -> str:
    """Name of the file in a round's ``clients`` that holds a site's state."""
    return f"{io.as_file_name(site)}.safetensors"


# by path; the system releases a lock when its file is closed, also by garbage collection
_open_locks: dict[Path, TextIO] = {}


def take_lock(folder: Path) -> None:
    """Takes the lock of a run's folder for this process.

    It is a lock of the operating system (``fcntl``): after a process is killed, it is released once its memory is
    freed, which this function waits for; workers that outlive their process do not hold it. It does not work across
    machines on network file systems without a lock service.

    Raises:
        Refused: another run holds it (fault 51).
        OSError: the disk has no locks; its file name is that of the lock.
    """
    path = (folder / LOCK).resolve()
    # opening and closing the file again would release the lock
    holder = str(os.getpid()) if path in _open_locks else ""
    if not holder:
        stream = open(path, "a+", encoding="utf-8")  # noqa: SIM115 - open as long as the lock is held
        deadline = time.monotonic() + PATIENCE
        with io.naming(path):
            while not (locked := _try_lock(stream)) and time.monotonic() < deadline:
                time.sleep(0.05)
            if locked:
                stream.truncate(0)
                print(os.getpid(), file=stream, flush=True)
                _open_locks[path] = stream
                return
        stream.seek(0)
        holder = stream.read().strip() or "unknown"
        stream.close()
    hint = "wait for that run, stop it, or choose another output_dir"
    raise refused(path.parent, f"a folder used by another run (process {holder})", "an unused folder", hint)


def _try_lock(stream: TextIO) -> bool:
    with suppress(BlockingIOError, PermissionError):  # EAGAIN or EACCES, by system: another process holds it
        fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def site_record(
    reply: Message | Failure,
    scores: Mapping[str, Any] | None,
    unscored: str | None,
    traffic: Traffic | None,
    expected: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """One site's part of ``round.json``.

    Args:
        reply: its reply to the training message.
        scores: its scores of the aggregated model on its validation images.
        unscored: the reason if there are none.
        traffic: its bytes in this round.
        expected: expected Dice of the model's masks of its images.

    With differential privacy, ``releases`` is the number of noisy messages that the site has sent in this run so far.
    """
    traffic = traffic or Traffic()
    record: dict[str, Any] = {"status": "skipped", "reason": None, "n": None, "seconds": None, "terms": {}}
    if isinstance(reply, Failure):
        record["reason"] = reply.reason
    else:
        terms = {name[len("term_") :]: value for name, value in reply.metrics.items() if name.startswith("term_")}
        record.update(status="ok", n=reply.n, seconds=reply.metrics.get("seconds"), terms=terms)
        if "releases" in reply.metrics:
            record["releases"] = int(reply.metrics["releases"])
    record.update(validation=dict(scores) if scores else None, unscored=unscored)
    record.update({"expected": dict(expected)} if expected else {})
    record.update(up_bytes=traffic.up, down_bytes=traffic.down)
    return record


def round_record(
    round: int, rounds: int, sites: Mapping[str, Any], seconds: Mapping[str, float], *, skip_empty: bool = False
) -> dict[str, Any]:
    """``round.json`` without the hashes of its files.

    Seconds are counted until the record is made; ``controller`` includes writing the round before.
    """
    scored = {site: entry["validation"] for site, entry in sites.items() if entry["validation"]}
    return {
        "schema": 1,
        "round": round,
        "rounds": rounds,
        "sites": dict(sites),
        "average": {"validation": pool(scored.values(), skip_empty=skip_empty)},
        "worst": {"validation": worst(scored)},
        "seconds": dict(seconds),
    }


def round_line(record: Mapping[str, Any]) -> str:
    """One line about a round: ``round 3 of 30: validation Dice 0.834, lowest 0.790 (site-2), 18 s``."""
    dice, lowest = record["average"]["validation"]["dice"], record["worst"]["validation"]
    parts = [f"validation Dice {dice:.3f}"] if dice is not None else ["no validation scores"]
    if (expected := expected_dice(record)) is not None:
        parts.append(f"expected {expected:.3f} (not calibrated)")
    if lowest is not None:
        parts.append(f"lowest {lowest['dice']:.3f} ({lowest['site']})")
    skipped = sorted(site for site, entry in record["sites"].items() if entry["status"] != "ok")
    if skipped:
        parts.append(f"skipped {', '.join(skipped)}")
    parts.append(f"{sum(record['seconds'].values()):.0f} s")
    return f"round {record['round'] + 1} of {record['rounds']}: {', '.join(parts)}"


def total_traffic(records: Iterable[Mapping[str, Any]], others: Iterable[Traffic]) -> dict[str, int]:
    """``up_bytes`` and ``down_bytes`` of all rounds and of other messages."""
    counted = [round_traffic(record) for record in records]
    counted += [{"up_bytes": other.up, "down_bytes": other.down} for other in others]
    return {name: sum(each[name] for each in counted) for name in BYTES}


def skipped(records: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Every reply that was left out: ``{"round", "site", "reason"}``."""
    return [
        {"round": record["round"], "site": site, "reason": entry["reason"]}
        for record in records
        for site, entry in record["sites"].items()
        if entry["status"] != "ok"
    ]


def expected_dice(record: Mapping[str, Any]) -> float | None:
    """Mean expected Dice of the model's masks in a round, over the images that sites evaluated; it needs no labels."""
    return _mean_over_images(_expected(record).values())


def calibration_of(record: Mapping[str, Any]) -> Calibration | None:
    """Calibration of a round's expected Dice, from the groups of labelled images that sites sent."""
    return Calibration.fit(Group(**group) for entry in _expected(record).values() for group in entry["groups"])


def _expected(record: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {site: entry["expected"] for site, entry in record["sites"].items() if entry.get("expected")}


def _mean_over_images(expected: Collection[Mapping[str, Any]]) -> float | None:
    images = sum(entry["images"] for entry in expected)
    return sum(entry["dice"] * entry["images"] for entry in expected) / images if images else None


_Rating = tuple[bool, int, float, int]
"""Whether scored with labels, number of sites with scores so far, Dice, negative round number; the largest is best."""


class BestRounds:
    """The best round so far and as of the round before, updated as rounds are stored; each record is read once.

    The best round has the highest mean validation Dice; the earliest wins a tie. If no site has masks, it is the round
    with the highest expected Dice (:func:`expected_dice`), or the last round if sites sent none. A site that sent no
    scores in a round counts with its previous ones, so that no round looks good because a hard site was missing; rounds
    before a site sent scores for the first time are no longer candidates.

    The run's initial network is a candidate, :data:`START`, if it and at least one round were scored.
    """

    def __init__(self) -> None:
        self.now = self.before = 0
        #: Number of rounds in a row, up to the last one, that score less than the initial network.
        self.below = 0
        self._seen = 0
        self._scores: dict[str, Mapping[str, Any]] = {}
        self._expected: dict[str, Mapping[str, Any]] = {}
        self._highest: _Rating | None = None
        self._start: _Rating | None = None

    def follow(self, records: Sequence[Mapping[str, Any]], start: Mapping[str, Any] | None = None) -> None:
        """Updates the best rounds with the records that are new.

        Args:
            records: of all rounds so far, including those of earlier calls.
            start: of the initial network.
        """
        if start is not None and self._seen == 0:
            self._start = self._rate(start)
        for number in range(self._seen, len(records)):
            rating, start_rating = self._rate(records[number]), self._start
            worse = False
            if rating is not None and start_rating is not None:
                worse = rating[:2] == start_rating[:2] and rating[2] < start_rating[2]
            self.below = self.below + 1 if worse else 0
            if rating is not None:
                self._highest = max(rating, self._highest or rating)
            best = number if self._highest is None else -max(self._highest, start_rating or self._highest)[3]
            self.before, self.now = self.now if number else best, best
        self._seen = len(records)

    def _rate(self, record: Mapping[str, Any]) -> _Rating | None:
        scores = {site: entry["validation"] for site, entry in record["sites"].items() if entry["validation"]}
        expected = _expected(record)
        self._scores |= scores
        self._expected |= expected
        known, dice = self._scores, record["average"]["validation"]["dice"]
        if known.keys() != scores.keys():
            dice = pool(known.values())["dice"] if scores else None
        if expected and not known:
            known, dice = self._expected, _mean_over_images(self._expected.values())
        return None if dice is None else (known is self._scores, len(known), dice, -record["round"])


def best_round(records: Sequence[Mapping[str, Any]], start: Mapping[str, Any] | None = None) -> int:
    """The best of some rounds and of the initial network (:class:`BestRounds`)."""
    bests = BestRounds()
    bests.follow(records, start)
    return bests.now


def against_start(records: Sequence[Mapping[str, Any]], start: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """``{"by", "start", "rounds"}``: scores of a run's initial network and of its best round.

    ``by`` is ``validation Dice``, or ``expected Dice`` if no site has masks; ``None`` if neither is known.
    """
    if start is None:
        return None
    best = records[best_round(records)]
    dice_by_kind = {
        "validation Dice": [record["average"]["validation"]["dice"] for record in (start, best)],
        "expected Dice": [expected_dice(record) for record in (start, best)],
    }
    for kind, (at_start, at_best) in dice_by_kind.items():
        if at_start is not None and at_best is not None:
            return {"by": kind, "start": at_start, "rounds": at_best}
    return None


def _flat(content: Any, prefix: str) -> dict[str, Any]:
    if isinstance(content, Mapping) and content:
        return {key: value for name, part in content.items() for key, value in _flat(part, f"{prefix}#{name}").items()}
    return {prefix: list(content) if isinstance(content, tuple) else content}


def _rows(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [_row(record["round"], site, entry) for site, entry in record["sites"].items()]


def _row(round: int, site: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    scores = entry.get("validation") or {}
    plain = {name: entry.get(name) for name in ("status", "reason", "n", "seconds", "up_bytes", "down_bytes")}
    row = {"round": round, "site": site, **plain, **{name: scores.get(name) for name in ("dice", "iou", "hd95")}}
    row["images"], row["expected_dice"] = scores.get("n"), (entry.get("expected") or {}).get("dice")
    row.update({f"empty_{side}": count for side, count in (scores.get("empty") or {}).items()})
    row.update({f"term_{name}": value for name, value in (entry.get("terms") or {}).items()})
    return {name: "" if value is None else value for name, value in row.items()}
