"""Progress in a log: lines, few of them, and none that says nothing."""

from __future__ import annotations

import io
import os
import subprocess
import sys

from tqdm import tqdm

from samfed_monai.core.run_log import LogBar, progress_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def lines(capsys) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_a_log_gets_the_first_and_the_last_state_as_lines(capsys):
    assert list(progress_bar(range(50), desc="soft masks", unit="image")) == list(range(50))
    first, last = lines(capsys)
    assert first.startswith("soft masks:   0%|          | 0/50 [")
    assert last.startswith("soft masks: 100%|##########| 50/50 [")


def test_what_takes_long_is_told_in_between(capsys):
    for _ in progress_bar(range(3), desc="teacher", mininterval=0):
        pass
    assert [line.partition("|")[0] for line in lines(capsys)] == [f"teacher: {n:3}%" for n in (0, 33, 67, 100)]


def test_a_bar_that_stops_early_says_where(capsys):
    with progress_bar(total=4) as bar:
        bar.update(3)
    assert lines(capsys)[-1].startswith(" 75%|#######5  | 3/4 [")


def test_nothing_is_shown_where_nothing_is_asked_for(capsys):
    assert list(progress_bar([1, 2], show=False)) == [1, 2]
    assert lines(capsys) == []


def test_a_terminal_has_tqdms_own(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress_bar(total=1, show=False) as bar:
        assert type(bar) is tqdm
    monkeypatch.setattr(sys, "stderr", None)
    with progress_bar(total=1, show=False) as bar:
        assert type(bar) is LogBar


def test_the_environment_can_do_without_bars():
    code = "from samfed_monai.core.run_log import progress_bar; print(list(progress_bar(range(3))))"
    environment = {**os.environ, "TQDM_DISABLE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("[0, 1, 2]\n", "")
