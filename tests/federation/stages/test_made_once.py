"""Tests of the lock on things that several runs share."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path

from samfed_monai.federation.teacher import made_once


def make_slowly(path: Path, journal: Path) -> None:
    with made_once(path) as exists:
        if not exists:
            with journal.open("a") as stream:
                stream.write("made\n")
            time.sleep(0.3)
            path.write_text("ready")


def test_it_says_whether_the_thing_exists(tmp_path):
    path = tmp_path / "deep" / "thing"
    with made_once(path) as exists:
        assert not exists
        path.write_text("ready")
    with made_once(path) as exists:
        assert exists


def test_of_three_processes_one_makes_it_and_the_others_wait(tmp_path):
    path, journal = tmp_path / "thing", tmp_path / "journal"
    context = multiprocessing.get_context("spawn")
    makers = [context.Process(target=make_slowly, args=(path, journal)) for _ in range(3)]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join()
    assert [maker.exitcode for maker in makers] == [0, 0, 0]
    assert journal.read_text() == "made\n"
