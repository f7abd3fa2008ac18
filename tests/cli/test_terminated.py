"""SIGTERM ends every command with a sentence about what is kept, and code 3."""

from __future__ import annotations

import os
import signal
import time

import pytest

from samfed_monai.cli import main as cli
from samfed_monai.core.run_log import NAME, RunLog
from samfed_monai.federation.signals import ASKED, Terminated, Termination


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        (
            ["teach", "B", "--datalist", "L", "--data-root", "D", "--output", "A"],
            "the epochs that were complete are kept",
        ),
        (["federate", "B"], "what was complete before the rounds is kept in the run's cache"),
        (["report", "R"], "what was complete is kept"),
    ],
)
def test_fault_82_a_command_ends_what_it_had_open_and_says_what_is_kept(monkeypatch, capsys, words, kept):
    parser = cli.build_parser()
    parse = parser.parse_known_args

    closed = []

    def ended(arguments):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        finally:
            closed.append(True)

    def parsed(argv, *more):
        arguments, extra = parse(argv, *more)
        arguments.run = ended
        return arguments, extra

    monkeypatch.setattr(parser, "parse_known_args", parsed)
    monkeypatch.setattr(cli, "build_parser", lambda: parser)
    before = signal.getsignal(signal.SIGTERM)
    assert cli.main(words) == 3
    assert closed == [True], "locks and children are let go"
    assert signal.getsignal(signal.SIGTERM) == before
    told = capsys.readouterr().err
    assert told.startswith(f"stopped: asked to end (SIGTERM); {kept}")
    assert told.endswith("to go on: type the same command again\n")


def test_the_log_of_a_run_has_a_line_and_no_traceback(tmp_path):
    def work():
        with RunLog().kept() as log, Termination():
            log.into(tmp_path)
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Terminated):
        work()
    assert (tmp_path / NAME).read_text().splitlines()[0].endswith(f"ERROR   {ASKED}")
    assert len((tmp_path / NAME).read_text().splitlines()) == 1
