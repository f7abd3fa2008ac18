"""A run is a folder: what was asked for, its rounds, one table, and a lock while a process works on it."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from samfed_monai.core.errors import DISK_FULL, Problems, Refused, refused
from samfed_monai.core.io import (
    PUBLIC,
    append_line,
    canonical_hash,
    read_json,
    require_writable,
    to_csv,
    write_json,
    write_text,
)
from samfed_monai.core.words import clipped
from samfed_monai.federation.round_store import START, RoundRecords, RoundStore, StoredRound
from samfed_monai.metrics import pool, worst
from samfed_monai.metrics.quality import Calibration, Group
from samfed_monai.protocol.message import Message
from samfed_monai.protocol.transport import Failure, Traffic

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)


# Keeps the files of held locks open: the system drops a lock when its file is closed, garbage collection included.
_held: dict[Path, TextIO] = {}


LOCK = ".lock"
"""File of a run's folder that says whether a run is at work in it."""


class RunLock:
    """A lock file in a run's folder.

    The lock is the operating system's own (``fcntl``), so that of a killed process is free at once and its file is
    simply taken over; workers that outlive their process do not hold it. It does not work across machines on network
    file systems without lock service.

    Args:
        path: the lock file; it holds the process id of its owner and stays when the lock is released.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).resolve()
        self._holds = False

    def acquire(self) -> None:
        """Takes the lock.

        Raises:
            Refused: another run holds it (fault 51).
        """
        if self.path in _held:
            raise self._refusal(str(os.getpid()))
        stream = open(self.path, "a+", encoding="utf-8")  # noqa: SIM115 - open as long as the lock is held
        try:
            fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            stream.seek(0)
            owner = stream.read().strip()
            stream.close()
            raise self._refusal(owner or "unknown") from None
        stream.seek(0)
        stream.truncate()
        stream.write(f"{os.getpid()}\n")
        stream.flush()
        _held[self.path] = stream
        self._holds = True

    @staticmethod
    def is_held(path: str | Path) -> bool:
        """Whether another process holds the lock of this file."""
        try:
            with open(path, "r+b") as stream:
                os.lockf(stream.fileno(), os.F_TEST, 0)
        except (BlockingIOError, PermissionError):
            return True
        except OSError:  # there is none
            return False
        return False

    def release(self) -> None:
        """Gives the lock back; nothing when it is not held."""
        if self._holds:
            self._holds = False
            _held.pop(self.path).close()

    def _refusal(self, owner: str) -> Refused:
        hint = "wait for it, stop it, or choose another output_dir"
        found = f"another run is at work in it (process {owner})"
        return refused(str(self.path.parent), found=found, expected="a folder of its own", hint=hint)


def site_record(
    reply: Message | Failure,
    scores: Mapping[str, Any] | None,
    unscored: str | None,
    traffic: Traffic | None,
    *,
    expected: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """One site's part of ``round.json``.

    Args:
        reply: its answer to the training message.
        scores: its scores of the aggregated model on its validation images.
        unscored: why there are none.
        traffic: its bytes in this round.
        expected: what the model's masks of its images promise.

    With differential privacy, ``releases`` is how many messages with noise the site has sent in this run so far.
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

    Seconds are those up to the moment the record is made; ``controller`` includes the writing of the round before.
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


def expected_dice(record: Mapping[str, Any]) -> float | None:
    """Mean Dice that the model's masks promise in a round, over the images that sites looked at; no label is needed."""
    promised = _promised(record)
    images = sum(each["images"] for each in promised)
    return sum(each["dice"] * each["images"] for each in promised) / images if images else None


def calibration_of(record: Mapping[str, Any]) -> Calibration | None:
    """What the promises of a round's model are worth, from the groups of images with labels that sites sent."""
    return Calibration.fit(Group(**group) for each in _promised(record) for group in each["groups"])


def _promised(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [entry["expected"] for entry in record["sites"].values() if entry.get("expected")]


def round_line(record: Mapping[str, Any]) -> str:
    """One line about a round: ``round 3 of 30: validation Dice 0.834, expected 0.850, lowest 0.790 (site-2), 18 s``."""
    dice, lowest = record["average"]["validation"]["dice"], record["worst"]["validation"]
    parts = [f"validation Dice {dice:.3f}"] if dice is not None else ["no validation scores"]
    if (expected := expected_dice(record)) is not None:
        parts.append(f"expected {expected:.3f}")
    if lowest is not None:
        parts.append(f"lowest {lowest['dice']:.3f} ({lowest['site']})")
    skipped = sorted(site for site, entry in record["sites"].items() if entry["status"] != "ok")
    if skipped:
        parts.append(f"skipped {', '.join(skipped)}")
    parts.append(f"{sum(record['seconds'].values()):.0f} s")
    return f"round {record['round'] + 1} of {record['rounds']}: {', '.join(parts)}"


def round_traffic(record: Mapping[str, Any]) -> dict[str, int]:
    """``up_bytes`` and ``down_bytes`` of a round, over all sites."""
    return {name: sum(entry[name] for entry in record["sites"].values()) for name in ("up_bytes", "down_bytes")}


def total_traffic(records: Iterable[Mapping[str, Any]], others: Iterable[Traffic]) -> dict[str, int]:
    """``up_bytes`` and ``down_bytes`` of all rounds, and of what was sent beside them."""
    counted = [round_traffic(record) for record in records]
    counted += [{"up_bytes": other.up, "down_bytes": other.down} for other in others]
    return {name: sum(each[name] for each in counted) for name in ("up_bytes", "down_bytes")}


def skipped(records: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Every answer that was left out: ``{"round", "site", "reason"}``."""
    return [
        {"round": record["round"], "site": site, "reason": entry["reason"]}
        for record in records
        for site, entry in record["sites"].items()
        if entry["status"] != "ok"
    ]


#: Columns of ``federation.csv``, one row per round and site, followed by one ``term_<name>`` per loss term.
#: Scores are those of the aggregated model on the site's validation images; bytes count training and validation.
COLUMNS = (
    "round", "site", "status", "reason", "n", "dice", "iou", "hd95", "images",
    "empty_both", "empty_prediction", "empty_label", "expected_dice", "seconds", "up_bytes", "down_bytes",
)  # fmt: skip


class RunFolder:
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
        self._lock = RunLock(self.path / LOCK)
        #: Numbers of rounds after which the run was finished, before it was given more.
        self.rounds_before: list[int] = []
        self._bests = Bests()
        self._terms: list[str] = []  # heads of the table beside COLUMNS
        self._written = 0  # rounds that this process has written into the table

    def open(
        self,
        config: Mapping[str, Any],
        *,
        versions: Mapping[str, str] | None = None,
        hashes: Mapping[str, str] | None = None,
        seeds: Mapping[str, int] | None = None,
    ) -> RunFolder:
        """Locks the folder, and writes ``run.json`` or compares itself with the one that is there.

        A run that was ended before its first round was complete holds nothing to go on from: ``run.json`` is replaced.
        A finished run may be given more ``rounds`` (:meth:`_extend`), unless it is a row of a comparison.

        Args:
            config: the resolved configuration, JSON content; machine paths do not belong in it.
            versions: of packages; a difference is logged, because results may then differ in the last bits.
            hashes: of what was read (data list, weights, adapter); a difference is refused.
            seeds: by name; a difference is refused.

        Raises:
            Refused: the folder cannot be written (fault 54), another run holds it (51), or it belongs to a run with
                another configuration; every differing key is named.
        """
        self._refuse_if_read_only()
        self._lock.acquire()
        try:
            content: dict[str, Any] = {
                "schema": 1,
                "config_hash": canonical_hash(config),
                "config": dict(config),
                "hashes": dict(hashes or {}),
                "seeds": dict(seeds or {}),
                "versions": dict(versions or {}),
            }
            self.store.clean()
            if self._holds_results() and (self.path / "run.json").exists():
                old = read_json(self.path / "run.json")
                self.rounds_before = list(old.get("rounds_before", []))
                rounds = old.get("config", {}).get("rounds")
                if self._may_have_more(rounds, config.get("rounds")):
                    self._compare({**old, "config": {**old["config"], "rounds": config["rounds"]}}, content)
                    self._extend(rounds, content)
                else:
                    self._compare(old, content)
            else:
                write_json(self.path / "run.json", content, mode=PUBLIC)
        except BaseException:
            self._lock.release()
            raise
        return self

    def close(self) -> None:
        """Releases the lock."""
        self._lock.release()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write_round(
        self,
        weights: Mapping[str, Tensor],
        records: RoundRecords,
        record: Mapping[str, Any],
        save_state: Callable[[Path], dict[str, str]] | None = None,
        *,
        server_state: Mapping[str, Tensor] | None = None,
        keep_best_states: bool = False,
    ) -> StoredRound:
        """Stores a round after those of ``records``, adds it to them and to ``federation.csv``, removes what is over.

        What stays: the models of the last two rounds and of the best round as of each of them, so that going back one
        round finds everything; the network that the run began with; the sites' states of the last two rounds, and with
        ``keep_best_states`` of those best rounds (where a site's state holds its own network); every ``round.json``.
        """
        last = len(records)
        stored = self.store.write(last, weights, record, save_state, server_state)
        records.append(stored)
        self.write_table(records)
        recent = {last, max(last - 1, 0)}
        self._bests.follow(records, self.store.start())
        bests = {self._bests.now, self._bests.before, START}
        self.store.prune(keep_models=recent | bests, keep_states=recent | bests if keep_best_states else recent)
        return stored

    @property
    def rounds_below_start(self) -> int:
        """Rounds, up to the last one that was written, that score less than the network that the run began with."""
        return self._bests.below

    def finish(self, records: Sequence[Mapping[str, Any]], *, keep_states: bool) -> None:
        """Keeps of a run that has its results what can still be of use: the best and the last model.

        The sites' states of the last round stay, too, from which the run goes on if it is given more rounds.

        Args:
            records: of all rounds.
            keep_states: keep the sites' states of both rounds (where a site's state holds its network).
        """
        last = len(records) - 1
        kept = {best_round(records, self.store.start()), last}
        self.store.prune(keep_models=kept, keep_states=kept)
        if keep_states:
            self.store.say_where_states_are()
        else:
            self.store.delete_states(but=last)

    def write_table(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Writes ``federation.csv`` from the records of all rounds.

        Where this process has written it up to the round before, the last round's rows are appended; the whole is
        written where it has not, and where a loss term has come that no head is for.
        """
        path = self.path / "federation.csv"
        rows = [row for record in records[-1:] for row in _rows(record)]
        known = all(name in COLUMNS or name in self._terms for row in rows for name in row)
        if self._written and self._written == len(records) - 1 and known and path.is_file():
            text = to_csv([*COLUMNS, *self._terms], rows)
            append_line(path, text.partition("\n")[2].rstrip("\n"), mode=PUBLIC)
        else:  # records are read twice, and never held all at once
            found = {name for record in records for row in _rows(record) for name in row}
            self._terms = sorted(found.difference(COLUMNS))
            rows_of_all = (row for record in records for row in _rows(record))
            write_text(path, to_csv([*COLUMNS, *self._terms], rows_of_all), mode=PUBLIC)
        self._written = len(records)

    def _refuse_if_read_only(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            require_writable(self.path)
        except OSError as error:
            if error.errno in DISK_FULL:
                raise
            found = f"it cannot be written ({os.strerror(error.errno) if error.errno else error})"
            hint = "choose another output_dir, or fix its permissions"
            raise refused(str(self.path), found=found, expected="a folder for the run", hint=hint) from None

    def _holds_results(self) -> bool:
        rounds = self.store.folder
        return (self.path / "results.json").exists() or (rounds.is_dir() and any(rounds.iterdir()))

    def _may_have_more(self, before: Any, now: Any) -> bool:
        """Whether a finished run of so many rounds may go on to that many: one that no comparison is made of."""
        if not (type(before) is int and type(now) is int and now > before == len(self.store.rounds())):
            return False
        return (self.path / "results.json").is_file() and not (self.path / "compare.json").exists()

    def _extend(self, before: int, content: Mapping[str, Any]) -> None:
        """Makes a finished run of ``before`` rounds one that is not finished; its results stay under another name.

        What a round does with its number of rounds, a learning-rate schedule for instance, is from now on that of the
        longer run; rounds that were stored are not repeated.
        """
        self.rounds_before.append(before)
        write_json(self.path / "run.json", {**content, "rounds_before": self.rounds_before}, mode=PUBLIC)
        os.replace(self.path / "results.json", self.path / f"results-after-{before}-rounds.json")
        now = content["config"]["rounds"]
        new = f"round {now} follows" if now == before + 1 else f"rounds {before + 1} to {now} follow"
        logger.info("more rounds: %s the schedules (learning rate, weights of terms) of a run of %d rounds", new, now)

    def _compare(self, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
        problems = Problems()
        for part in ("config", "hashes", "seeds"):
            before, now = (_flat(run.get(part, {}), part) for run in (old, new))
            for key in sorted(before.keys() | now.keys()):
                if before.get(key, _ABSENT) != now.get(key, _ABSENT):
                    hint = "resume with the old value, or choose another output_dir"
                    found, expected = _shown(now, key), f"{_shown(before, key)}, as in run.json"
                    option = key.replace("config#client#", "config#")  # as the command line spells it
                    problems.add(f"{self.path.name} -> {option}", found=found, expected=expected, hint=hint)
        problems.refuse_if_any()
        for name, version in new["versions"].items():
            if old.get("versions", {}).get(name) != version:
                was = old.get("versions", {}).get(name)
                logger.warning("%s was %s when this run began and is %s now: last bits may differ", name, was, version)


class Bests:
    """The best round as of the last one and as of the one before, found as rounds come: each is looked at once.

    The best is the round with the highest mean validation Dice, the earliest among equals. Where no site has masks it
    is the one whose masks promise most (:func:`expected_dice`), and the last where nothing was sent of that either. A
    site that was not scored in a round counts there with its last scores, so that no round looks good because a hard
    site was away; from the round on that scores a site for the first time, those before it are out.

    The network that the run began with is one of them, :data:`START`, where it was scored.
    """

    def __init__(self) -> None:
        self.now = self.before = 0
        #: Rounds in a row, up to the last one, that score less than the start.
        self.below = 0
        self._seen = 0
        self._known: dict[str, Mapping[str, Any]] = {}
        self._highest: tuple[int, float, int] | None = None
        self._start: tuple[int, float, int] | None = None

    def follow(self, records: Sequence[Mapping[str, Any]], start: Mapping[str, Any] | None = None) -> None:
        """Looks at those of ``records`` that were not looked at; they begin with those that were, or it begins anew.

        Args:
            records: of the rounds.
            start: of the network that they began with.
        """
        if len(records) < self._seen:
            vars(self).update(vars(Bests()))
        if start is not None and self._seen == 0:
            self._start = self._highest = self._rated(start)
        for number in range(self._seen, len(records)):
            self._add(records[number])

    def _rated(self, record: Mapping[str, Any]) -> tuple[int, float, int] | None:
        """Number of sites that were ever scored, Dice, and the negative round: the largest is the best."""
        scored = {site: entry["validation"] for site, entry in record["sites"].items() if entry["validation"]}
        self._known |= scored
        dice = record["average"]["validation"]["dice"]
        if self._known.keys() != scored.keys():
            dice = pool(self._known.values())["dice"]
        if dice is not None:
            return len(self._known), dice, -record["round"]
        if not self._known and (expected := expected_dice(record)) is not None:
            return 0, expected, -record["round"]
        return None

    def _add(self, record: Mapping[str, Any]) -> None:
        rated, start = self._rated(record), self._start
        if rated is not None:
            self._highest = rated if self._highest is None else max(self._highest, rated)
        worse = rated is not None and start is not None and rated[0] == start[0] and rated[1] < start[1]
        self.below = self.below + 1 if worse else 0
        best = record["round"] if self._highest is None else -self._highest[2]
        self.before, self.now = self.now if self._seen else best, best
        self._seen += 1


def best_round(records: Sequence[Mapping[str, Any]], start: Mapping[str, Any] | None = None) -> int:
    """The best of some rounds, and of the network that they began with (:class:`Bests`)."""
    bests = Bests()
    bests.follow(records, start)
    return bests.now


def against_start(records: Sequence[Mapping[str, Any]], start: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """``{"by", "start", "rounds"}``: what the network that a run began with scores, and its best round.

    ``by`` is ``validation Dice``, or ``expected Dice`` where no site has masks; ``None`` where neither is known.
    """
    if start is None:
        return None
    of = {"start": start, "rounds": records[best_round(records)]}
    for by, score in (("validation Dice", _validation_dice), ("expected Dice", expected_dice)):
        found = {name: score(record) for name, record in of.items()}
        if None not in found.values():
            return {"by": by, **found}
    return None


def _validation_dice(record: Mapping[str, Any]) -> float | None:
    dice: float | None = record["average"]["validation"]["dice"]
    return dice


_ABSENT = object()


def _flat(content: Any, prefix: str) -> dict[str, Any]:
    if isinstance(content, Mapping) and content:
        return {key: value for name, part in content.items() for key, value in _flat(part, f"{prefix}#{name}").items()}
    return {prefix: list(content) if isinstance(content, tuple) else content}


def _shown(content: Mapping[str, Any], key: str) -> str:
    return clipped(repr(content[key]), 80) if key in content else "nothing"


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
