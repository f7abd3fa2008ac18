import pytest

from samfed_monai.cli.main import main
from samfed_monai.federation.privacy import AuditLog


def test_the_table_of_a_site_is_shown(tmp_path, capsys):
    AuditLog(tmp_path).write({"site": "Basel", "round": 2, "task": "train", "outcome": "sent", "bytes": 9, "kind": "w"})
    assert main(["audit", str(tmp_path / "audit.jsonl")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[1:5] == ["Basel", "2", "train", "sent"]
    assert lines[-1] == "sent w: 1 messages, 9 bytes"


def test_a_file_that_is_not_there_is_refused(tmp_path, capsys):
    assert main(["audit", str(tmp_path / "audit.jsonl")]) == 2
    assert "expected an audit file, found no such file" in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["a", "b"]])
def test_it_takes_one_file(words, capsys):
    with pytest.raises(SystemExit):
        main(["audit", *words])
