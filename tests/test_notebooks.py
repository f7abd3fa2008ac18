"""The notebooks of the documentation run with fewer steps, in an empty folder and without downloaded weights."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from samfed_monai.cli.main import COMMANDS
from tests.commands import forked_commands

REPOSITORY = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((REPOSITORY / "docs" / "notebooks").glob("*.ipynb"))


def cells(notebook: Path, kind: str) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == kind]


def run(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, smaller: dict[str, str]) -> str:
    """Executes a notebook in a folder and returns its output; a failing cell raises its error.

    Args:
        smaller: replacements in its commands, for smaller sizes and numbers, on which its results do not depend.
    """
    nbformat, nbclient = (pytest.importorskip(module) for module in ("nbformat", "nbclient"))
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("SAMFED_WEIGHTS", str(folder / "none"))
    monkeypatch.setenv("TMPDIR", str(folder))  # for its temporary folders
    folder.mkdir()
    text = (REPOSITORY / "docs" / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8")
    for whole, part in smaller.items():
        assert text.count(whole) == 1
        text = text.replace(whole, part)
    book = nbformat.reads(text, as_version=4)
    client = nbclient.NotebookClient(book, timeout=900, kernel_name="python3", resources={"metadata": {"path": folder}})
    with forked_commands() as commands:
        monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
        client.execute()
    printed = "".join(output.get("text", "") for cell in book.cells for output in cell.get("outputs", []))
    return printed.replace("\r\n", "\n")


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_has_no_outputs(notebook: Path):
    kept = [cell["id"] for cell in cells(notebook, "code") if cell["outputs"] or cell["execution_count"] is not None]
    assert not kept, f"clear them: python -m nbconvert --clear-output --inplace {notebook.relative_to(REPOSITORY)}"


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_commands_and_links_of_notebook_exist(notebook: Path):
    code = "".join("".join(cell["source"]) + "\n" for cell in cells(notebook, "code"))
    assert set(re.findall(r"^!samfed +([a-z]+)", code, re.MULTILINE)) <= set(COMMANDS)
    text = "".join("".join(cell["source"]) for cell in cells(notebook, "markdown"))
    links = re.findall(r"\]\((?!https?://)([^)#\s]+)", text)
    assert links
    assert [link for link in links if not (notebook.parent / link).is_file()] == []


@pytest.mark.slow
def test_first_day_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    smaller = {
        "--rounds 2": "--rounds 1",
        "--local_steps 4 --warm_start_steps 24": "--local_steps 1 --warm_start_steps 4",
    }
    output = run("first-day", tmp_path / "day", monkeypatch, smaller)
    dice = {site: float(found) for site, found in re.findall(r"^(site-\d) +12 +(\d\.\d{3}) ", output, re.MULTILINE)}
    assert sorted(dice) == ["site-1", "site-2"]
    assert min(dice.values()) > 0.7, "the shipped network, on rendered skin"
    assert len(list((tmp_path / "day").glob("first-day-*/masks/*.png"))) == 6
    assert re.search(r"^site-2: test Dice \d\.\d{3}, HD95 .* px, 12 images$", output, re.MULTILINE)


@pytest.mark.slow
def test_new_method_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    smaller = {"--seeds 0 --rounds 2": "--seeds 0 --rounds 1", "--images-per-site 16": "--images-per-site 6"}
    smaller["--local_steps 4 --warm_start_steps 16"] = "--local_steps 1 --warm_start_steps 2"
    output = run("new-method", tmp_path / "lab", monkeypatch, smaller)
    assert "samfed_skin: no problems in train" in output
    (table,) = (tmp_path / "lab").glob("new-method-*/runs/compared/comparison.md")
    assert "| Root share (`root_share`) |" in table.read_text(encoding="utf-8")
    written = [cell["source"] for cell in cells(REPOSITORY / "docs/notebooks/new-method.ipynb", "code")]
    method = next("".join(lines) for lines in written if "root_share.py" in lines[0])
    assert len([line for line in method.splitlines()[1:] if line.strip()]) <= 20
