"""The audit log: one line for every message that leaves a site, written before it leaves."""

from __future__ import annotations

import json
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from samfed_monai.core.errors import Problem, Refused
from samfed_monai.core.io import append_line, parse_json

logger = logging.getLogger("samfed_monai.audit")

FILE_NAME = "audit.jsonl"
COLUMNS = ("time", "site", "round", "task", "outcome", "kind", "tensors", "bytes", "n", "noise", "metrics", "problems")


class AuditLog:
    """Appends to ``audit.jsonl`` in the site's folder (mode 0600) and to the logger ``samfed_monai.audit``.

    A line is one write, flushed to the disk before :meth:`write` returns: a message whose line cannot be written does
    not leave. Lines hold names that are on the allow-list and numbers, no tensor and no score.

    Args:
        folder: the site's own folder; ``None`` writes to the logger only.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.path = None if folder is None else Path(folder) / FILE_NAME
        self._lock = threading.Lock()

    def write(self, record: Mapping[str, Any]) -> None:
        """Appends ``record`` with the time in front.

        Raises:
            OSError: it could not be written.
        """
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, **record}, ensure_ascii=False, allow_nan=False)
        with self._lock:
            if self.path is not None:
                append_line(self.path, line)
        logger.info("%s", line)

    def noised(self) -> Counter[float]:
        """Noise multiplier to the number of messages with it that this file holds (:func:`count_noise`)."""
        return count_noise(self.path, _noise_of)

    def answered(self, task: str) -> Counter[int]:
        """Round to the number of answers to a task that this file holds as gone; lines that were cut off count not.

        Args:
            task: a value of :class:`~samfed_monai.protocol.transport.Task`.
        """
        counts: Counter[int] = Counter()
        for record in _lines(self.path) if self.path is not None and self.path.is_file() else ():
            if record and record.get("task") == task and record.get("outcome") in _GONE:
                counts[record.get("round", 0)] += 1
        return counts


_GONE = ("sent", "masked")


def _noise_of(record: Any) -> Any:
    noise = record.get("noise")
    return noise["noise_multiplier"] if noise else None


def count_noise(path: Path | None, noise_of: Callable[[Any], Any]) -> Counter[float]:
    """Noise multiplier to the number of releases with it.

    A line that cannot be read (a write was cut off), or lacks the number, counts as one with the least noise of the
    others.

    Args:
        path: a file of JSON lines; ``None``, and one that is not there, hold none.
        noise_of: gives the noise multiplier of a line's record; ``None`` where the line is of no release.
    """
    counts: Counter[float] = Counter()
    torn = 0
    for record in _lines(path) if path is not None and path.is_file() else ():
        try:
            value = noise_of(record)
            counts += Counter([] if value is None else [float(value)])
        except (AttributeError, KeyError, TypeError, ValueError):
            torn += 1
    if torn:
        counts[min(counts, default=1.0)] += torn
    return counts


def read_audit(path: str | Path) -> list[dict[str, Any]]:
    """The records of a file, oldest first.

    Raises:
        Refused: there is no such file, or it holds a line that is no record; the line's number is told.
    """
    path = Path(path)
    if not path.is_file():
        hint = f"name a site's {FILE_NAME}"
        raise Refused([Problem(str(path), found="no such file", expected="an audit file", hint=hint)])
    records = []
    for number, record in enumerate(_lines(path), start=1):
        if record is None:
            hint = "a line that was cut off: what it was about had not left when the machine stopped"
            raise Refused([Problem(f"{path}, line {number}", found="no record", expected="JSON", hint=hint)])
        if not {"site", "outcome"} <= record.keys():
            found, hint = f"keys {sorted(record)[:4]}", f"name a site's {FILE_NAME}"
            raise Refused([Problem(f"{path}, line {number}", found=found, expected="a record of an audit", hint=hint)])
        records.append(record)
    if not records:
        raise Refused([Problem(str(path), found="an empty file", expected="an audit file: this site sent nothing yet")])
    return records


def audit_table(records: Iterable[Mapping[str, Any]]) -> str:
    """Records as text for a reader: a row per message, then messages and bytes by kind."""
    records = list(records)
    columns = [*COLUMNS, *(["statistics"] if any(record.get("statistics") for record in records) else [])]
    rows = [columns, *([_cell(name, record.get(name)) for name in columns] for record in records)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    return "\n".join([*lines, "", *_totals(records)])


def _totals(records: Iterable[Mapping[str, Any]]) -> list[str]:
    sums: dict[str, list[int]] = {}
    for record in records:
        if record.get("outcome") == "declared":
            continue
        what = f"{record.get('outcome')} {record.get('kind')}"
        entry = sums.setdefault(what, [0, 0])
        entry[0] += 1
        entry[1] += int(record.get("bytes") or 0)
    return [f"{what}: {count} messages, {size} bytes" for what, (count, size) in sorted(sums.items())]


def _cell(name: str, value: Any) -> str:
    if name == "noise" and isinstance(value, Mapping):
        return f"sd {value['deviation']:.3g}, release {value['release']}"
    if name == "statistics" and isinstance(value, Mapping):
        return f"{value['kind']} of {value['images']} images"
    if isinstance(value, (list, tuple)):
        return ", ".join(str(each) for each in value) or "-"
    return "-" if value is None else str(value)


def _lines(path: Path) -> list[dict[str, Any] | None]:
    found: list[dict[str, Any] | None] = []
    for line in path.read_bytes().splitlines():
        try:
            record = parse_json(line)
        except ValueError:
            record = None
        found.append(record if isinstance(record, dict) else None)
    return found
