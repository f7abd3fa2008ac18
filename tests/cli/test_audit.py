import pytest

from samfed_monai.cli.main import main
from samfed_monai.privacy import AuditLog


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
def test_it_takes_one_file(words):
    with pytest.raises(SystemExit):
        main(["audit", *words])


def test_a_folder_needs_an_attack(tmp_path, capsys):
    assert main(["audit", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert (
        "expected an audit file, found a folder; name a site's file in it, sites/SITE/audit.jsonl, or an attack" in told
    )
    for site in ("a", "b"):
        AuditLog(tmp_path / "sites" / site).write({"site": site, "outcome": "sent"})
    assert main(["audit", str(tmp_path)]) == 2
    files = " or ".join(str(tmp_path / "sites" / site / "audit.jsonl") for site in ("a", "b"))
    assert f"name a site's file in it, {files}, or an attack" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"dice": 0.9, "site": "a"}\n', "line 1: expected a record of an audit, found keys ['dice', 'site']"),
        ("", "expected an audit file: this site sent nothing yet, found an empty file"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path, capsys, text, told):
    (tmp_path / "other.jsonl").write_text(text)
    assert main(["audit", str(tmp_path / "other.jsonl")]) == 2
    assert told in capsys.readouterr().err


def test_options_of_attacks_need_an_attack(tmp_path, capsys):
    assert main(["audit", str(tmp_path / "audit.jsonl"), "--shadows", "32", "--output-dir", "x"]) == 2
    told = capsys.readouterr().err
    assert "--shadows: expected --attack NAME with it, found it without --attack" in told
    assert "--output-dir: expected --attack NAME" in told


def test_a_misspelt_attack_is_refused_with_the_one_that_was_meant(tmp_path, capsys):
    assert main(["audit", str(tmp_path), "--attack", "membership,invertion"]) == 2
    assert "found 'invertion'; did you mean 'inversion'?" in capsys.readouterr().err
    assert main(["audit", str(tmp_path), "--attack", ","]) == 2
    assert "--attack: expected one of ['membership', 'lira', 'inversion', 'planted', 'all']" in capsys.readouterr().err


def test_numbers_too_small_are_refused_together(tmp_path, capsys):
    assert main(["audit", str(tmp_path), "--attack", "lira", "--shadows", "8", "--steps", "0"]) == 2
    shown = capsys.readouterr().err
    assert "--shadows: expected a whole number >= 16, found 8" in shown
    assert "--steps: expected a whole number >= 1, found 0" in shown


def test_what_is_no_finished_run_is_refused(tmp_path, capsys):
    assert main(["audit", str(tmp_path), "--attack", "all"]) == 2
    assert "expected a finished run, found no results.json in it" in capsys.readouterr().err
    assert main(["audit", str(tmp_path / "none"), "--attack", "all"]) == 2
    assert "expected a finished run, found no results.json in it" in capsys.readouterr().err
