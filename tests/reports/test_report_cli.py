from __future__ import annotations

import argparse
import shutil
import subprocess
import sys

import pytest

from samfed_monai.commands.report import add_report_parser
from samfed_monai.core.errors import Refused

from .runs import DICE, write_run


@pytest.fixture
def parser():
    parser = argparse.ArgumentParser()
    add_report_parser(parser.add_subparsers())
    return parser


def test_one_run_gets_its_report(parser, run_folder, tmp_path, capsys):
    shutil.copytree(run_folder, tmp_path / "R")
    args = parser.parse_args(["report", str(tmp_path / "R"), "--no-overlays"])
    assert args.run(args) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'R' / 'report.html'}\n"


def test_several_runs_are_compared(parser, runs, tmp_path, capsys):
    args = parser.parse_args(["report", *map(str, runs), "--output-dir", str(tmp_path / "C"), "--title", "Skin"])
    assert args.run(args) == 0
    out = capsys.readouterr().out
    assert "0.860 ± 0.020" in out
    assert out.endswith(f"{tmp_path / 'C' / 'comparison.html'}\n")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["R", "--output-dir", "C", "--caveat", "small"], r"--output-dir: .* the report of one run(.|\n)*--caveat"),
        (
            ["R", "S", "--no-overlays"],
            "--no-overlays: expected no such option there, found it with a comparison or a page",
        ),
        (["--section", "A=D", "--page", "p.md", "--output-dir", "C"], "--output-dir: .* a page of sections"),
        (["R", "--page", "p.md", "--section-command", "A=x"], "--section-command: .* a page without --section"),
    ],
)
def test_options_that_would_do_nothing_are_refused(parser, words, told):
    args = parser.parse_args(["report", *words])
    with pytest.raises(Refused, match=told):
        args.run(args)


def test_its_parser_imports_nothing_heavy():
    heavy = {"torch", "monai", "matplotlib", "jinja2", "numpy"}
    code = f"import sys, samfed_monai.commands.report; print(sorted({heavy} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_comparison_becomes_a_page_of_a_document(parser, runs, tmp_path):
    page = tmp_path / "docs" / "skin.md"
    words = ["--title", "Skin", "--command", "make skin", "--caveat", "A subset.", "--caveat", "Small."]
    args = parser.parse_args(
        ["report", *map(str, runs), "--output-dir", str(tmp_path / "C"), "--page", str(page), *words]
    )
    assert args.run(args) == 0
    text = page.read_text(encoding="utf-8")
    assert text.startswith("# Skin\n\n```\nmake skin\n```\n")
    assert "](skin.png)" in text
    assert "- A subset.\n- Small.\n" in text
    assert (tmp_path / "docs" / "skin.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def collection(tmp_path):
    for variant, dices in DICE.items():
        for seed, dice in enumerate(dices):
            write_run(tmp_path / "R" / variant / f"seed-{seed}", variant, seed, dice)
    return tmp_path / "R"


@pytest.mark.parametrize("ablation", [False, True])
def test_a_page_of_sections_needs_no_runs(parser, collection, tmp_path, capsys, ablation):
    page = tmp_path / "docs" / "polyp.md"
    words = ["--section", f"A={collection}", "--section", f"B={collection}", "--page", str(page)]
    args = parser.parse_args(["report", *words, *(["--ablation", "--default", "mine"] if ablation else [])])
    assert args.run(args) == 0
    assert capsys.readouterr().out == f"{page}\n"
    text = page.read_text(encoding="utf-8")
    assert text.startswith("# Ablations\n" if ablation else "# Comparison\n\n## A\n")
    assert ("vs mine" in text) == ablation
    assert sorted(path.name for path in page.parent.iterdir()) == ["polyp-a.png", "polyp-b.png", "polyp.md"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "RUN: expected at least one finished run, found none"),
        (["--ablation", "R"], "--page: expected the file to write, found nothing"),
        (["--section", "A=R", "--page", "p.md", "R"], "RUN: expected runs, or sections of a page, found 1 beside"),
    ],
)
def test_what_does_not_fit_together_is_refused(parser, words, message):
    args = parser.parse_args(["report", *words])
    with pytest.raises(Refused, match=message):
        args.run(args)
