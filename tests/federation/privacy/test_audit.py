import pytest

from samfed_monai.core.errors import Refused
from samfed_monai.federation.privacy import AuditLog, audit_table, read_audit

SENT = {"site": "Basel", "round": 0, "task": "train", "outcome": "sent", "kind": "weights", "bytes": 100, "n": 40}


def test_lines_are_appended_and_read_back(tmp_path):
    log = AuditLog(tmp_path / "made")
    log.write(SENT)
    log.write({**SENT, "round": 1, "noise": {"deviation": 0.5, "noise_multiplier": 2.0, "release": 1}})
    first, second = read_audit(tmp_path / "made" / "audit.jsonl")
    assert (first["round"], second["round"]) == (0, 1)
    assert first["time"].endswith("+00:00")
    assert log.noised() == {2.0: 1}


def test_a_table_has_a_row_per_message_and_the_sums(tmp_path):
    records = [
        {"time": "t", **SENT, "metrics": ["dice", "iou"]},
        {"time": "t", **SENT, "noise": {"deviation": 0.5, "release": 1}},
    ]
    lines = audit_table(iter(records)).splitlines()
    assert lines[0].split()[:5] == ["time", "site", "round", "task", "outcome"]
    assert "dice, iou" in lines[1]
    assert "sd 0.5, release 1" in lines[2]
    assert lines[-1] == "sent weights: 2 messages, 200 bytes"


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(Refused, match="no such file"):
        read_audit(tmp_path / "audit.jsonl")
    assert not AuditLog(tmp_path).noised()
