import re

import pytest

from samfed_monai.core.errors import Refused
from samfed_monai.privacy import AuditLog, audit_table, read_audit

SENT = {"site": "Basel", "round": 0, "task": "train", "outcome": "sent", "kind": "weights", "bytes": 100, "n": 40}


def test_lines_are_appended_logged_and_read_back(tmp_path, caplog):
    caplog.set_level("INFO")
    log = AuditLog(tmp_path / "made")
    for round in (0, 1):
        log.write({**SENT, "site": "Zürich", "round": round})
    assert log.path.read_text(encoding="utf-8").count('"Zürich"') == 2, "names as they are written"
    assert caplog.messages == log.path.read_text().splitlines()
    lines = read_audit(log.path)
    assert [line["round"] for line in lines] == [0, 1]
    assert re.fullmatch(r"[\d-]{10}T[\d:]{8}\.\d{3}\+00:00", lines[0]["time"])
    with pytest.raises(ValueError, match="Out of range float values are not JSON compliant"):
        log.write({"deviation": float("nan")})


CUT_OFF = "the line was cut off before its message was sent: read a copy of the file without this line"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, ": expected an audit file, found no such file; name a site's audit.jsonl"),
        ("", ": expected an audit file, found an empty file: this site sent nothing yet"),
        ('{"site": "a", "outcome": "sent"}\n{"site": "Ba', f", line 2: expected a JSON object, found text; {CUT_OFF}"),
        (
            '{"e": 5, "d": 4, "c": 3, "b": 2, "site": 1}',
            ", line 1: expected an audit record, found keys ['b', 'c', 'd', 'e']; name a site's audit.jsonl",
        ),
    ],
)
def test_unreadable_audit_files_are_refused(tmp_path, content, problem):
    path = tmp_path / "audit.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(Refused) as error:
        read_audit(path)
    assert [str(each) for each in error.value.problems] == [f"{path}{problem}"]


def test_answers_are_counted_by_task_and_round(tmp_path):
    log = AuditLog(tmp_path)
    for round, task, outcome in (
        (0, "train", "sent"), (0, "train", "masked"), (0, "train", "refused"), (1, "train", "sent"),
        (0, "evaluate", "sent"), (None, "train", "declared"),
    ):  # fmt: skip
        log.write({**SENT, "round": round, "task": task, "outcome": outcome})
    log.path.open("a").write('{"task": "train", "outc')
    assert log.count_sent("train") == {0: 2, 1: 1}
    assert log.count_sent("evaluate") == {0: 1}
    assert AuditLog().count_sent("train") == AuditLog(tmp_path / "new").count_sent("train") == {}


def test_table_lists_all_columns_and_totals():
    records = [
        {"time": "t", **SENT, "tensors": 3, "metrics": [], "noise": {"deviation": 0.12345, "release": 2}},
        {"time": "v", **SENT, "outcome": "declared", "statistics": {"kind": "graph", "images": 7}},
        {"time": "u", **SENT, "outcome": "refused", "bytes": None, "problems": ["a: b", "c"]},
    ]
    heads, *rows = [line.split("  ") for line in audit_table(records).splitlines()]
    assert [each.strip() for each in heads if each.strip()] == [
        "time", "site", "round", "task", "outcome", "kind", "tensors", "bytes", "n", "noise", "metrics", "problems",
        "statistics",
    ]  # fmt: skip
    assert [[each.strip() for each in row if each.strip()] for row in rows] == [
        ["t", "Basel", "0", "train", "sent", "weights", "3", "100", "40", "sd 0.123, release 2", "-", "-", "-"],
        ["v", "Basel", "0", "train", "declared", "weights", "-", "100", "40", "-", "-", "-", "graph of 7 images"],
        ["u", "Basel", "0", "train", "refused", "weights", "-", "-", "40", "-", "-", "a: b, c", "-"],
        [],
        ["refused weights: 1 messages, 0 bytes"],
        ["sent weights: 1 messages, 100 bytes"],
    ]
