"""``samfed report``: of one run, of several, and what it refuses."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys

import pytest

from samfed_monai.cli.report import add_report_parser
from samfed_monai.core.errors import Refused


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
        (["R", "--output-dir", "C", "--title", "T"], r"--output-dir: .* the report of one run(.|\n)*--title"),
        (["R", "S", "--no-overlays"], "--no-overlays: expected no such option there, found it with a comparison"),
    ],
)
def test_options_that_would_do_nothing_are_refused(parser, words, told):
    args = parser.parse_args(["report", *words])
    with pytest.raises(Refused, match=told):
        args.run(args)


def test_its_parser_imports_nothing_heavy():
    heavy = {"torch", "monai", "matplotlib", "jinja2", "numpy"}
    code = f"import sys, samfed_monai.cli.report; print(sorted({heavy} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_without_a_run_there_is_nothing_to_report(parser, capsys):
    with pytest.raises(SystemExit):
        parser.parse_args(["report"])
    assert "the following arguments are required: RUN" in capsys.readouterr().err
