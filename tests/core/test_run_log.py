"""What a run logs is in its folder, with times, and in no other's; of its progress a log has few lines."""

from __future__ import annotations

import io
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from ignite.engine import Engine
from tqdm import tqdm

from samfed_monai.core.errors import Stopped, Terminated
from samfed_monai.core.run_log import NAME, LogBar, RunLog, command_line, progress_bar, round_folders

LINE = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} "
OURS = logging.getLogger("samfed_monai.somewhere")


@pytest.fixture(autouse=True)
def as_in_a_command():
    logger = logging.getLogger("samfed_monai")
    logger.setLevel(logging.INFO)
    logger.propagate = False


def test_command_line_is_logged_without_password(monkeypatch):
    monkeypatch.setattr("sys.argv", ["samfed", "--mlflow", "https://user:s3cr@et@host/a@b", "--note", "a b@c"])
    assert command_line() == "samfed --mlflow https://host/a@b --note 'a b@c'"
    monkeypatch.setenv("SAMFED_COMMAND", "samfed flare poc samfed_skin")  # of a server that FLARE starts
    assert command_line() == "samfed flare poc samfed_skin"


def test_earlier_records_are_logged_and_file_is_appended(tmp_path):
    with RunLog().kept() as log:
        OURS.info("first %d", 1)
        log.into(tmp_path)
        OURS.warning("second")
        OURS.debug("not kept")
        assert re.fullmatch(f"{LINE}INFO    first 1\n{LINE}WARNING second\n", (tmp_path / NAME).read_text())
    OURS.info("after the block")
    assert len((tmp_path / NAME).read_text().splitlines()) == 2
    with RunLog().kept() as log:
        log.into(tmp_path)
        OURS.info("another command")
    assert len((tmp_path / NAME).read_text().splitlines()) == 3, "a file is appended to"


@pytest.mark.parametrize("propagates", [True, False])
def test_package_warnings_are_logged_once(tmp_path, propagates):
    logging.getLogger("samfed_monai").propagate = propagates
    with RunLog().kept() as log:
        log.into(tmp_path)
        OURS.warning("ours")
        logging.getLogger("monai.x").warning("theirs")
        logging.getLogger("monai.x").info("their small talk")
        logging.getLogger("samfed_monai.audit").info("of the audit")
    assert [line[-6:] for line in (tmp_path / NAME).read_text().splitlines()] == ["G ours", "theirs"]


def failing(error: BaseException) -> Callable[..., None]:
    def fail(*_) -> None:
        raise error

    return fail


def logged(work: Callable[[], object], folder: Path | None) -> None:
    with RunLog().kept("samfed federate …") as log:
        if folder is not None:
            log.into(folder)
        work()


def test_log_begins_with_command_and_ends_with_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Stopped):
        logged(failing(Stopped("refused its folder")), None)
    assert list(tmp_path.iterdir()) == [], "without a folder nothing is written"
    with pytest.raises(Stopped):
        logged(failing(Stopped("the disk is full", "make room")), tmp_path)
    first, second, *_ = (tmp_path / NAME).read_text().splitlines()
    assert (first[32:], second[32:]) == ("samfed federate …", "stopped: the disk is full")
    with pytest.raises(ZeroDivisionError):
        logged(failing(ZeroDivisionError("division by zero")), tmp_path)
    text = (tmp_path / NAME).read_text()
    assert "Traceback" in text
    assert text.endswith("ZeroDivisionError: division by zero\n")


@pytest.mark.parametrize(
    ("error", "kept"),
    [
        (Terminated("asked to end"), False),
        (KeyboardInterrupt(), False),
        (Stopped("full", resume="again"), False),
        (ZeroDivisionError("by zero"), True),
    ],
)
def test_ignite_error_message_is_logged_for_unexpected_errors(tmp_path, error, kept):
    with pytest.raises(type(error)):
        logged(lambda: Engine(failing(error)).run([0]), tmp_path)
    assert ("Engine run is terminating due to exception: " in (tmp_path / NAME).read_text()) is kept


def test_round_folders_are_found_by_number(tmp_path):
    for name in ("1000", "999", "000", "1001.torn", ".1002.77.tmp", "notes"):
        (tmp_path / name).mkdir()
    (tmp_path / "003").touch()
    assert round_folders(tmp_path) == {number: tmp_path / f"{number:03d}" for number in (0, 999, 1000)}
    assert list(round_folders(tmp_path)) == [0, 999, 1000]
    assert round_folders(tmp_path / "rounds") == {}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def lines(capsys) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_progress_log_has_first_and_last_state(capsys):
    assert list(progress_bar(range(50), desc="soft masks", unit="image")) == list(range(50))
    first, last = lines(capsys)
    assert first.startswith("soft masks:   0%|          | 0/50 [")
    assert last.startswith("soft masks: 100%|##########| 50/50 [")


def test_slow_progress_is_logged_at_intervals(capsys):
    for _ in progress_bar(range(3), desc="teacher", mininterval=0):
        pass
    assert [line.partition("|")[0] for line in lines(capsys)] == [f"teacher: {n:3}%" for n in (0, 33, 67, 100)]


def test_interrupted_progress_bar_shows_last_state(capsys):
    with progress_bar(total=4) as bar:
        bar.update(3)
    assert lines(capsys)[-1].startswith(" 75%|#######5  | 3/4 [")


def test_disabled_progress_bar_prints_nothing(capsys):
    assert list(progress_bar([1, 2], show=False)) == [1, 2]
    assert lines(capsys) == []


def test_terminal_uses_tqdm_bar(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress_bar(total=1, show=False) as bar:
        assert type(bar) is tqdm
    monkeypatch.setattr(sys, "stderr", None)
    with progress_bar(total=1, show=False) as bar:
        assert type(bar) is LogBar


def test_tqdm_disable_variable_hides_bar():
    code = "from samfed_monai.core.run_log import progress_bar; print(list(progress_bar(range(3))))"
    environment = {**os.environ, "TQDM_DISABLE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("[0, 1, 2]\n", "")
