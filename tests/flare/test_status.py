"""How a run on FLARE stands, what of a server's log is told, and a port that is in use."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from samfed_monai.core.errors import ExitCode, Refused, Stopped, machine_failure, message_and_code
from samfed_monai.flare.controller import FederationController
from samfed_monai.flare.local import _until_done, refuse_busy_port
from samfed_monai.flare.session import (
    ServerReported,
    clear_status,
    raise_for_status,
    read_status,
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
        _until_done(tmp_path, tmp_path / "log", str)
    assert told.value.exit_code == 3
    clear_status(tmp_path)
    with pytest.raises(Stopped, match="it is gone"):
        _until_done(tmp_path, tmp_path / "log", lambda: "it is gone")


class Full(FederationController):
    """A server whose disk is full."""

    def __init__(self, at: Path) -> None:
        super().__init__("first")
        self.fl_ctx = None
        self.at, self.on_this_machine, self.told = at, False, list[str]()

    def federate(self, folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/run/x")

    def run_folder(self) -> Path:
        return self.at / "run"

    def job_run_folder(self) -> Path:
        return self.at / "job"

    def system_panic(self, reason: str, fl_ctx: Any) -> None:
        self.told.append(reason)


@pytest.mark.parametrize("writes", [True, False])
def test_a_full_disk_at_the_server_stops_the_run_and_is_in_its_log(tmp_path, monkeypatch, caplog, writes):
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/job")

    monkeypatch.setattr("samfed_monai.flare.controller.set_up_process", lambda: None)
    server = Full(tmp_path)
    if not writes:
        write_status(tmp_path / "run", "running")
        monkeypatch.setattr("samfed_monai.flare.session.write_json", full)
        monkeypatch.setattr("samfed_monai.flare.controller.publish", full)
    server.run()
    assert server.told == [str(machine_failure(OSError(errno.ENOSPC, "", "/run/x" if writes else "/job")))]
    assert caplog.records[0].message == server.told[0]
    if writes:
        assert read_status(tmp_path / "job" / "samfed")["message"] == server.told[0]
    else:
        assert "the disk is full (/job)" in caplog.records[-1].message


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
