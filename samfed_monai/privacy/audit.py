"""The audit log: one line for every outgoing message of a site, written before the message leaves."""

from __future__ import annotations

import json
import logging
import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from samfed_monai.core.errors import refused
from samfed_monai.core.io import append_line, parse_json
from samfed_monai.core.text import aligned

logger = logging.getLogger("samfed_monai.audit")

FILE_NAME = "audit.jsonl"
COLUMNS = ("time", "site", "round", "task", "outcome", "kind", "tensors", "bytes", "n", "noise", "metrics", "problems")


class AuditLog:
    """Appends to ``audit.jsonl`` in the site's folder (mode 0600) and to the logger ``samfed_monai.audit``.

    A line is one write, synced to disk before :meth:`write` returns: a message whose line cannot be written does not
    leave. Lines have numbers and names from the allow-list, no tensors and no scores.

    Args:
        folder: the site's own folder; ``None`` writes to the logger only.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.path = None if folder is None else Path(folder) / FILE_NAME
        self._lock = threading.Lock()

    def write(self, record: Mapping[str, Any]) -> None:
        """Appends ``record``, preceded by the time.

        Raises:
            OSError: the line could not be written.
        """
        line = with_time(record)
        with self._lock:
            if self.path is not None:
                append_line(self.path, line)
        logger.info("%s", line)

    def count_sent(self, task: str) -> Counter[int]:
        """Returns the number of sent replies to a task by round; incomplete lines are not counted.

        Args:
            task: a value of :class:`~samfed_monai.protocol.transport.Task`.
        """
        counts: Counter[int] = Counter()
        for record in json_lines(self.path):
            if record and record.get("task") == task and record.get("outcome") in _SENT:
                counts[record.get("round", 0)] += 1
        return counts


_SENT = ("sent", "masked")


def read_audit(path: str | Path) -> list[dict[str, Any]]:
    """Returns the records of an audit file, oldest first.

    Raises:
        Refused: the file is missing or empty, or a line is no record; the message has the line's number.
    """
    path, records = Path(path), []
    hint = f"name a site's {FILE_NAME}"
    if not path.is_file():
        raise refused(path, found="no such file", expected="an audit file", hint=hint)
    for number, record in enumerate(json_lines(path), start=1):
        where = f"{path}, line {number}"
        if record is None:
            hint = "the line was cut off before its message was sent: read a copy of the file without this line"
            raise refused(where, found="text", expected="a JSON object", hint=hint)
        if not {"site", "outcome"} <= record.keys():
            raise refused(where, found=f"keys {sorted(record)[:4]}", expected="an audit record", hint=hint)
        records.append(record)
    if not records:
        raise refused(path, found="an empty file: this site sent nothing yet", expected="an audit file")
    return records


def audit_table(records: Iterable[Mapping[str, Any]]) -> str:
    """Formats records as a table with a row per message, followed by messages and bytes by kind."""
    records = list(records)
    columns = [*COLUMNS, *(["statistics"] if any(record.get("statistics") for record in records) else [])]
    rows = [columns, *([_cell(name, record.get(name)) for name in columns] for record in records)]
    return "\n".join([aligned(rows), *_totals(records)])


def _totals(records: Iterable[Mapping[str, Any]]) -> list[str]:
    count, size = Counter[str](), Counter[str]()
    for record in (each for each in records if each.get("outcome") != "declared"):
        label = f"{record.get('outcome')} {record.get('kind')}"
        count[label] += 1
        size[label] += int(record.get("bytes") or 0)
    return [f"{label}: {count[label]} messages, {size[label]} bytes" for label in sorted(count)]


def _cell(name: str, value: Any) -> str:
    if name == "noise" and isinstance(value, Mapping):
        return f"sd {value['deviation']:.3g}, release {value['release']}"
    if name == "statistics" and isinstance(value, Mapping):
        return f"{value['kind']} of {value['images']} images"
    if isinstance(value, (list, tuple)):
        return ", ".join(str(each) for each in value) or "-"
    return "-" if value is None else str(value)


def with_time(record: Mapping[str, Any]) -> str:
    """Returns a record as a line of JSON, preceded by the time."""
    now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    return json.dumps({"time": now, **record}, ensure_ascii=False, allow_nan=False)


def json_lines(path: Path | None) -> list[dict[str, Any] | None]:
    """Returns the objects of a JSON lines file, none if it is missing; ``None`` for a line that is no JSON object."""
    records: list[dict[str, Any] | None] = []
    for line in path.read_bytes().splitlines() if path is not None and path.is_file() else ():
        try:
            record = parse_json(line)
        except ValueError:
            record = None
        records.append(record if isinstance(record, dict) else None)
    return records
