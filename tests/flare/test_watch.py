"""How a run on FLARE stands, what of a server's log is told, and a port that is in use."""

from __future__ import annotations

import pytest

from samfed_monai.core.errors import ExitCode, Refused, Stopped, message_and_code
from samfed_monai.flare.watch import (
    ServerReported,
    Watch,
    clear_status,
    raise_for_status,
    read_status,
    refuse_busy_port,
    user_lines,
    write_status,
)


def test_a_run_that_failed_by_our_mistake_ends_the_command_with_1(tmp_path):
    write_status(tmp_path, "failed", "TypeError: a mistake", ExitCode.FAILED)
    with pytest.raises(ServerReported, match="TypeError: a mistake") as told:
        raise_for_status(read_status(tmp_path))
    assert message_and_code(told.value)[1] == 1


def test_the_status_of_a_run_is_its_own_file(tmp_path):
    assert read_status(tmp_path)["state"] == "none"
    write_status(tmp_path, "stopped", "round 1: below quorum", 3)
    with pytest.raises(ServerReported, match="below quorum") as told:
        Watch(tmp_path, tmp_path / "log").until_done(lambda: "")
    assert told.value.exit_code == 3
    clear_status(tmp_path)
    with pytest.raises(Stopped, match="it is gone"):
        Watch(tmp_path, tmp_path / "log").until_done(lambda: "it is gone")


def test_only_what_a_user_wants_to_read_is_told():
    lines = [
        "2026-01-01 10:00:00,123 - INFO - round 1 of 3: validation Dice 0.5, 2 s",
        "2026-01-01 10:00:00,123 - INFO - execute for task (train)",
        "2026-01-01 10:00:00,123 - samfed_monai.flare - WARNING - site-2: dropped a late answer (its deadline ...)",
        "round 1 of 3: written by something else",
    ]
    assert user_lines(lines) == [
        "round 1 of 3: validation Dice 0.5, 2 s",
        "site-2: dropped a late answer (its deadline ...)",
    ]


def test_a_port_in_use_is_refused_with_another_one():
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(Refused, match=rf"port {port}: expected a free port, found in use.*--port {port + 100}"):
            refuse_busy_port(port)
