"""``samfed audit``: the table of a site, and what is refused before anything is attacked."""

import pytest

from samfed_monai.cli.main import main
from samfed_monai.privacy import AuditLog


def test_audit_table_of_site_is_printed(tmp_path, capsys):
    AuditLog(tmp_path).write({"site": "Basel", "round": 2, "task": "train", "outcome": "sent", "bytes": 9, "kind": "w"})
    assert main(["audit", str(tmp_path / "audit.jsonl")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[1:5] == ["Basel", "2", "train", "sent"]
    assert lines[-1] == "sent w: 1 messages, 9 bytes"


def test_folder_without_attack_is_refused(tmp_path, capsys):
    expected = "expected an audit file, found a folder; name the audit file of a site, {}, or add an attack"
    assert main(["audit", str(tmp_path)]) == 2
    assert expected.format("sites/SITE/audit.jsonl") in capsys.readouterr().err
    for site in ("a", "b"):
        AuditLog(tmp_path / "sites" / site).write({"site": site, "outcome": "sent"})
    assert main(["audit", str(tmp_path)]) == 2
    files = " or ".join(str(tmp_path / "sites" / site / "audit.jsonl") for site in ("a", "b"))
    assert expected.format(files) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "messages"),
    [
        (
            ["--shadows", "32", "--output-dir", "x"],
            ["--shadows: expected --attack NAME as well, found no --attack", "--output-dir: expected --attack"],
        ),
        (["--attack", "lira,invertion"], ["'planted', 'all'], found 'invertion'; did you mean 'inversion'?"]),
        (
            ["--attack", "lira", "--shadows", "8", "--steps", "0"],
            ["--shadows: expected a whole number >= 16, found 8", "--steps: expected a whole number >= 1, found 0"],
        ),
        (
            ["--attack", "membership,planted", "--shadows", "32", "--batch", "2", "--steps", "9"],
            [
                "refused: 2 problems",
                "--shadows: expected an attack that reads it: lira, found none of them",
                "--steps: expected an attack that reads it: inversion, found none of them",
            ],
        ),
        (["--attack", "all"], ["expected a finished run, found no "]),
    ],
)
@pytest.mark.parametrize("folder", [".", "none"])
def test_invalid_options_and_runs_are_reported_together(tmp_path, capsys, folder, words, messages):
    assert main(["audit", str(tmp_path / folder), *words]) == 2
    error = capsys.readouterr().err
    assert [message for message in messages if message not in error] == []
