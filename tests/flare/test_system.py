"""A user who ends the command, on FLARE's real processes."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest

from samfed_monai.cli.main import main
from samfed_monai.flare.local import MARK
from tests.flare.test_equality import words
from tests.forking import start

pytestmark = pytest.mark.slow


def typed(words: list[str], folder: Path) -> None:
    """The command, in a process of its own with ``folder`` for what is temporary."""
    os.environ["TMPDIR"] = str(folder)
    sys.exit(main(words))


def test_nothing_is_left_behind_when_the_command_is_ended(two_sites, tmp_path):
    options = words(two_sites, tmp_path / "run", variant="no_sam", rounds=50, **{"privacy#least_images": 1})
    process = start(typed, ["flare", "simulate", *options], tmp_path, errors=tmp_path / "errors")
    deadline = time.monotonic() + 300
    while not (tmp_path / "run" / "rounds" / "000").is_dir() and time.monotonic() < deadline:
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGTERM)
    process.join(120)
    told = (tmp_path / "errors").read_text()
    assert process.exitcode == 3, told[-2000:]
    assert "type the same command again" in told
    assert list(tmp_path.glob("samfed-flare-*")) == []
    assert [each.pid for each in psutil.process_iter() if _of(each, tmp_path)] == []


def _of(process: psutil.Process, folder: Path) -> bool:
    try:
        environment = process.environ()
    except psutil.Error:
        return False
    return MARK in environment and environment.get("TMPDIR") == str(folder)
