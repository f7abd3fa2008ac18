"""Mistakes that people make in JSON, on the command line and in data: one check finds each and says its hint."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from samfed_monai.cli.main import main
from samfed_monai.core.io import read_json

MISTAKES = read_json(Path(__file__).parents[1] / "fixtures" / "mistakes.json")
"""In a file: what stands there (a regular expression), what somebody writes instead, and what is told."""


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What `samfed check` refuses, a problem a line."""
    assert main(["check", *words]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    head, *problems = told.err[told.err.index("refused:") :].splitlines()
    assert re.fullmatch(rf"refused: {len(problems)} problems?", head)
    return problems


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mistakes") / "mine"
    assert main(["init", "samfed_skin", str(folder)]) == 0
    return folder


@pytest.mark.parametrize("mistake", MISTAKES["json"].values(), ids=list(MISTAKES["json"]))
def test_a_mistake_in_json_is_told_once_with_its_hint(mistake, own, capsys):
    workflow, message = mistake["workflow"], mistake["told"]
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
def test_a_mistake_on_the_command_line_is_told_once_with_its_hint(mistake, capsys):
    (problem,) = refused(mistake["words"], capsys)
    assert mistake["told"] in problem


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``images/`` and ``list.json``."""
    folder = tmp_path_factory.mktemp("data")
    options = ["--sites", "2", "--images-per-site", "4", "--public", "4", "--size", "64", "64", "--no-report"]
    assert main(["prepare", "synthetic", str(folder / "images"), "--output", str(folder / "list.json"), *options]) == 0
    return folder


def first_image(folder: Path) -> Path:
    listed = json.loads((folder / "list.json").read_text())["public"][0]
    return folder / "images" / listed["image"]


def lost(folder: Path) -> None:
    first_image(folder).unlink()


def another_picture(folder: Path) -> None:
    Image.new("RGB", (64, 64), "red").save(first_image(folder))


def cut(folder: Path) -> None:
    path = first_image(folder)
    path.write_bytes(path.read_bytes()[:100])


def list_edited_by_hand(folder: Path) -> None:
    path = folder / "list.json"
    path.write_text(path.read_text().replace("site-1", "hospital"))


IN_DATA: dict[str, tuple[Callable[[Path], None], str]] = {
    "an image that is gone": (lost, "found no such file; restore it, or check the data root"),
    "another image of the same name": (another_picture, "; restore the file, or make the list again"),
    "an image that was cut": (
        cut,
        "found a damaged file (Truncated File Read); copy it again from its source, or take it out",
    ),
    "a list that was edited": (list_edited_by_hand, "restore it, or make a new one with `samfed prepare`"),
}


@pytest.mark.parametrize("mistake", IN_DATA)
def test_a_mistake_in_data_is_told_with_its_hint(mistake, prepared, tmp_path, capsys):
    spoil, message = IN_DATA[mistake]
    folder = tmp_path / "data"
    shutil.copytree(prepared, folder)
    spoil(folder)
    data = ["--datalist", str(folder / "list.json"), "--data-root", str(folder / "images")]
    problems = refused(["samfed_skin", "--workflow", "inference", *data], capsys)
    assert message in problems[0]
