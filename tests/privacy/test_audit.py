import pytest

from samfed_monai.core.errors import Refused
from samfed_monai.privacy import AuditLog, audit_table, read_audit
from samfed_monai.privacy.accounting import count_noise
from samfed_monai.privacy.release import _noise_of

SENT = {"site": "Basel", "round": 0, "task": "train", "outcome": "sent", "kind": "weights", "bytes": 100, "n": 40}


def test_lines_are_appended_and_read_back(tmp_path):
    log = AuditLog(tmp_path / "made")
    log.write(SENT)
    log.write({**SENT, "round": 1, "noise": {"deviation": 0.5, "noise_multiplier": 2.0, "release": 1}})
    first, second = read_audit(tmp_path / "made" / "audit.jsonl")
    assert (first["round"], second["round"]) == (0, 1)
    assert first["time"].endswith("+00:00")
    assert count_noise(log.path, _noise_of) == {2.0: 1}


def test_a_line_is_logged_as_it_is_written_and_holds_no_nan(tmp_path, caplog):
    caplog.set_level("INFO")
    log = AuditLog(tmp_path)
    log.write(SENT)
    assert caplog.messages == (tmp_path / "audit.jsonl").read_text().splitlines()
    with pytest.raises(ValueError, match="Out of range float values are not JSON compliant"):
        log.write({"deviation": float("nan")})


def test_of_lines_that_were_cut_off_alone_each_counts_as_one_of_noise_1(tmp_path):
    (tmp_path / "audit.jsonl").write_text('{"time": "2026')
    assert count_noise(AuditLog(tmp_path).path, _noise_of) == {1.0: 1}


def test_refusals_in_full(tmp_path):
    path = tmp_path / "audit.jsonl"
    with pytest.raises(Refused) as error:
        read_audit(path)
    assert not count_noise(path, _noise_of)
    assert str(error.value.problems[0]) == (
        f"{path}: expected an audit file, found no such file; name a site's audit.jsonl"
    )
    AuditLog(tmp_path).write(SENT)
    with path.open("a") as stream:
        stream.write('{"site": "Ba')
    with pytest.raises(Refused) as error:
        read_audit(path)
    assert str(error.value.problems[0]) == (
        f"{path}, line 2: expected JSON, found no record; "
        "a line that was cut off: what it was about had not left when the machine stopped"
    )


def test_answers_are_counted_by_task_and_round_as_far_as_they_are_gone(tmp_path):
    log = AuditLog(tmp_path)
    for round, task, outcome in (
        (0, "train", "sent"), (0, "train", "masked"), (0, "train", "refused"), (1, "train", "sent"),
        (0, "evaluate", "sent"), (None, "train", "declared"),
    ):  # fmt: skip
        log.write({**SENT, "round": round, "task": task, "outcome": outcome})
    log.path.open("a").write('{"task": "train", "outc')
    assert log.answered("train") == {0: 2, 1: 1}
    assert log.answered("evaluate") == {0: 1}
    assert AuditLog().answered("train") == AuditLog(tmp_path / "new").answered("train") == {}


def test_a_table_in_full():
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
