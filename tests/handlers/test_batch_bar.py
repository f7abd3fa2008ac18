"""The progress bar over an engine's batches: a log has its first and last state."""

from __future__ import annotations

import pytest
from ignite.engine import Engine

from samfed_monai.handlers import BatchBar


def run(batches: int, epochs: int = 1, stop_at: int = 0, fail_at: int = 0) -> None:
    def step(engine: Engine, batch: int) -> None:
        if engine.state.iteration == stop_at:
            engine.terminate()
        if engine.state.iteration == fail_at:
            raise OSError("no room")

    engine = Engine(step)
    BatchBar(what="segmenting").attach(engine)
    engine.run(range(batches), max_epochs=epochs)


def printed_lines(capsys) -> list[str]:
    return [line.partition(" [")[0].replace(" ", "") for line in capsys.readouterr().err.splitlines()]


def test_evaluation_log_has_first_and_last_state(capsys):
    run(4)
    assert printed_lines(capsys) == ["segmenting:0%||0/4", "segmenting:100%|##########|4/4"]


def test_each_epoch_has_own_bar(capsys):
    run(2, epochs=2)
    heads = [line.partition(":")[0] for line in printed_lines(capsys)]
    assert heads == ["segmenting,epoch1of2"] * 2 + ["segmenting,epoch2of2"] * 2


def test_terminated_run_shows_last_state(capsys):
    run(4, stop_at=3)
    assert printed_lines(capsys)[-1] == "segmenting:75%|#######5|3/4"


def test_error_is_passed_on(capsys):
    with pytest.raises(OSError, match="no room"):
        run(4, fail_at=2)
