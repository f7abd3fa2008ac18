from __future__ import annotations

import pytest

from samfed_monai.commands.run_many import FailedRun, RunsRefused, failure, last_words
from samfed_monai.core.errors import Stopped

FAULT = """\
Traceback (most recent call last):
  File "x.py", line 1, in <module>
ZeroDivisionError: division by zero

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "module.py", line 255, in instantiate
RuntimeError: Failed to instantiate component 'samfed_monai.config.run_job' with keywords: job
 set '_mode_=debug' to enter the debugging mode.

this is a mistake in samfed rather than in your input; the lines above say where
"""
REFUSED = "site-1: 4 images\nrefused: 2 problems\n  - a: b\n  - c: d\n"


def run_of(tmp_path, name, text, code=1):
    folder = tmp_path / name
    folder.mkdir()
    (folder / "log.txt").write_text(text, encoding="utf-8")
    return FailedRun(f"{name}, seed 0", folder, code)


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        (FAULT, 1, ("ZeroDivisionError: division by zero",)),
        (REFUSED, 2, ("- a: b", "- c: d")),
        ("refused: 1 problem\n  - of last time\n" + REFUSED, 2, ("- a: b", "- c: d")),
        ("samfed: error: unrecognized arguments: x", 2, ("samfed: error: unrecognized arguments: x",)),
        (REFUSED + "stopped: disk full\n  to go on: make room", 3, ("to go on: make room",)),
        ("", -9, ("no output",)),
    ],
    ids=["fault", "refused", "refused-twice", "usage", "stopped", "killed"],
)
def test_a_run_s_last_words(tmp_path, text, code, words):
    assert last_words(run_of(tmp_path, "r", text).folder, code) == words


def test_the_error_is_a_refusal_where_all_were_refused_and_says_what_is_to_be_mended(tmp_path):
    refused, fault = run_of(tmp_path, "a", REFUSED, code=2), run_of(tmp_path, "b", FAULT)
    assert isinstance(failure([refused], 3), RunsRefused)
    mixed = failure([refused, fault], 3)
    assert isinstance(mixed, Stopped)
    assert mixed.reason.splitlines() == [
        "2 of 3 runs failed",
        f"    a, seed 0 ({refused.folder / 'log.txt'}):",
        "      - a: b",
        "      - c: d",
        f"    b, seed 0 ({fault.folder / 'log.txt'}):",
        "      ZeroDivisionError: division by zero",
    ]
    assert mixed.resume == "mend what was refused (1 of them), then type the same command again"
    assert failure([fault], 3).resume == "type the same command again"
