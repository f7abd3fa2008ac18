"""Mistakes that people make in JSON, on the command line and in data: one check finds each and says its hint."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from samfed_monai.cli.main import main
from samfed_monai.core.io import read_json

MISTAKES = read_json(Path(__file__).parents[1] / "fixtures" / "mistakes.json")
"""In a file: what is there (a regular expression), what is written instead, and what the refusal says."""


def refused(words: list[str], capsys: pytest.CaptureFixture[str], command: str = "check") -> list[str]:
    """What a command refuses, a problem a line."""
    assert main([command, *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    head, *problems = captured.err[captured.err.index("refused:") :].splitlines()
    assert re.fullmatch(rf"refused: {len(problems)} problems?", head)
    return problems


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mistakes") / "mine"
    assert main(["init", "samfed_skin", str(folder)]) == 0
    return folder


@pytest.mark.parametrize("mistake", MISTAKES["json"].values(), ids=list(MISTAKES["json"]))
def test_json_mistake_is_reported_once_with_hint(mistake, own, capsys):
    workflow, message = mistake["workflow"], mistake["message"]
    path = own / "configs" / f"{workflow}.json"
    right = path.read_text()
    wrong, count = re.subn(mistake["there"], mistake["instead"], right, count=1)
    assert count == 1
    path.write_text(wrong)
    try:
        (problem,) = refused([str(own), "--workflow", workflow], capsys)
    finally:
        path.write_text(right)
    assert problem.startswith(f"  - {workflow}.json")
    assert message in problem


@pytest.mark.parametrize("mistake", MISTAKES["command line"].values(), ids=list(MISTAKES["command line"]))
def test_command_line_mistake_is_reported_once_with_hint(mistake, capsys):
    (problem,) = refused(mistake["words"], capsys, mistake.get("command", "check"))
    assert mistake["message"] in problem


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("image", "; copy it again from its source, or remove it"),
        ("list.json", "restore it, or make a new list with `samfed prepare`"),
    ],
)
def test_data_mistake_is_refused_with_hint(file, message, small_federation, tmp_path, capsys):
    folder = Path(shutil.copytree(small_federation, tmp_path / "data"))
    listed = folder / "list.json"
    path = folder / read_json(listed)["public"][0]["image"] if file == "image" else listed
    content = path.read_bytes()
    path.write_bytes(content[:100] if file == "image" else content.replace(b"site-1", b"hospital"))
    data = ["--datalist", str(listed), "--data-root", str(folder)]
    assert message in refused(["samfed_skin", "--workflow", "inference", *data], capsys)[0]
