"""``--help`` lists the knobs of the files that a command takes, from the source that docs and schemas are made of."""

from __future__ import annotations

import pytest

from samfed_monai.cli.arguments import options_help
from samfed_monai.cli.main import main
from samfed_monai.config.options import option_tables

FILES = {
    "federate": ["federate.json", "train.json"],
    "teach": ["teacher.json"],
    "evaluate": ["evaluate.json"],
    "infer": ["inference.json"],
}


@pytest.mark.parametrize("command", FILES)
def test_every_knob_of_its_files_is_in_the_help_at_80_columns(command, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as left:
        main([command, "--help"])
    assert left.value.code == 0
    shown = capsys.readouterr().out
    knobs = [
        knob
        for file in FILES[command]
        for name, table in option_tables()[file].items()
        if name != "places"
        for knob in table
    ]
    # spelled as an option of the command, or as the id
    missing = {knob for knob in knobs if f"--{knob}" not in shown and f"--{knob.replace('_', '-')}" not in shown}
    if command == "federate":
        assert missing <= {"epochs", "site"}, "the job sets them"
    elif command == "teach":
        assert missing == {"score"}, "a federation alone reads it"
    else:
        assert missing == set()
    assert max(map(len, shown.splitlines())) <= 80
    assert "](" not in shown  # no Markdown links


def test_a_line_has_the_text_and_the_default_that_both_bundles_have(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    lines = {line.split()[0]: line for line in options_help("train.json").splitlines() if line.startswith("  --")}
    assert lines["--batch_size"] == "  --batch_size          labelled images in a step; as many unlabelled ones [4]"
    assert "--seed" not in {
        line.split()[0] for line in options_help("train.json", without=["--seed"]).splitlines() if line
    }
