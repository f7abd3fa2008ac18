"""A run on FLARE from outside: kits, servers that cannot be reached, silent sites, its status, log and results."""

from __future__ import annotations

import contextlib
import errno
import socket
import ssl
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from samfed_monai.cli.main import main
from samfed_monai.core.errors import ExitCode, Refused, Stopped, Terminated, machine_failure, reported
from samfed_monai.core.io import read_json, write_json
from samfed_monai.core.run_log import command_line
from samfed_monai.flare.controller import FederationController
from samfed_monai.flare.local import SERVER, Poc, _wait, reserved_port
from samfed_monai.flare.session import (
    ServerReported,
    admin_of,
    fetch_results,
    follow,
    open_session,
    publish,
    raise_for_status,
    read_status,
    user_lines,
    wait_for_sites,
    write_status,
)


def test_published_files_include_run_name(tmp_path):
    names = ("run.json", "results.json", "quality.json", "flare.run.json", "rounds/001/round.json")
    for name in (*names, "cache/own.safetensors"):
        (tmp_path / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / name).write_text("{}")
    publish(tmp_path / "run", tmp_path / "job")
    published = {path.relative_to(tmp_path / "job").as_posix() for path in tmp_path.glob("job/**/*") if path.is_file()}
    assert published == {f"samfed/{name}" for name in names}


def test_other_kits_are_refused_by_kind(tmp_path):
    with pytest.raises(Refused, match="no startup folder"):
        admin_of(tmp_path)
    write_json(tmp_path / "startup" / "fed_client.json", {})
    with pytest.raises(Refused, match="found a site's start-up kit"):
        admin_of(tmp_path)
    (tmp_path / "startup" / "fed_client.json").rename(tmp_path / "startup" / "fed_server.json")
    with pytest.raises(Refused, match="found a server's start-up kit"):
        admin_of(tmp_path)
    admin = {"username": "a@b.c", "client_key": "client.key", "host": "127.0.0.1", "port": 1}
    write_json(tmp_path / "startup" / "fed_admin.json", {"admin": admin})
    with pytest.raises(Refused, match=r"without client\.key, client_cert"):
        admin_of(tmp_path)


@pytest.mark.slow
def test_foreign_kit_is_refused_and_unreachable_server_reported(tmp_path, caplog):
    for name in ("server", "site-1"):
        write_json(tmp_path / "sites" / f"{name}.json", {})
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        ours, other = (Poc(tmp_path / name, ["site-1"], port=port) for name in ("ours", "other"))
        for system in (ours, other):
            system.provision(tmp_path / "sites")
        startup = ours.kits / SERVER / "startup"
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(startup / "server.crt", startup / "server.key")
        threading.Thread(target=_handshakes, args=(listening, context), daemon=True).start()
        assert admin_of(ours.admin)["username"] == "admin@samfed.local"
        with pytest.raises(Refused, match=r"expected a kit of this project.*a kit of the server's provisioning"):
            open_session(other.admin, timeout=3).__enter__()
        listening.shutdown(socket.SHUT_RDWR)  # a thread that waits in accept() would keep the port open
    match = rf"localhost:{port} cannot be reached(.|\n)*start the server"
    with pytest.raises(Stopped, match=match), open_session(ours.admin, timeout=3):
        pass
    assert caplog.text == "", "FLARE's own lines about its connection"


def _handshakes(listening: Any, context: Any) -> None:
    while True:
        try:
            raw, _ = listening.accept()
        except OSError:
            return
        with contextlib.suppress(OSError), context.wrap_socket(raw, server_side=True):
            pass


def test_silent_site_is_not_connected():
    def client(name: str, last_seen: float) -> SimpleNamespace:
        return SimpleNamespace(name=name, last_connect_time=last_seen)

    listed = [client("site-1", 1000.0), client("site-2", 880.0)]
    session = SimpleNamespace(get_system_info=lambda: SimpleNamespace(client_info=listed))
    with pytest.raises(Stopped, match=r"not connected to the server after 0 s: site-2 \(last seen 120 s ago\)"):
        wait_for_sites(session, ["site-1", "site-2"], timeout=0)
    listed.append(client("site-2", 995.0))  # started again: another entry of the same name
    wait_for_sites(session, ["site-1", "site-2"], timeout=0)


def log_of(*lines: str) -> str:
    return "".join(f"2026-01-01 00:00:00,000 - INFO - {line}\n" for line in lines)


class Clock:
    """Time passes when a thread sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Job:
    """A session in which a job's status and log are those of a script; an exception is raised in its place.

    The last entry of the script holds on. ``runs`` says whether the server runs the job; a clock begins with 1000.
    """

    def __init__(self, *script: tuple[Any, str], runs: bool = True, started: float = 900.0) -> None:
        self.script, self.log, self.detail = list(script), "", list[str]()
        self.jobs = [SimpleNamespace(job_id="id")] if runs else []
        self.server, self.clock = SimpleNamespace(start_time=started), Clock()

    def get_job_meta(self, job_id: str) -> dict[str, Any]:
        status, self.log = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if isinstance(status, BaseException):
            raise status
        return {"status": status, "submit_time": 950.0, "min_clients": 2, "job_deploy_detail": self.detail}

    def get_job_logs(self, job_id: str, target: str) -> dict[str, Any]:
        return {"logs": {"server": self.log}} if self.log else {"logs": {}, "unavailable": {"server": "not yet"}}

    def get_system_info(self) -> SimpleNamespace:
        return SimpleNamespace(job_info=self.jobs, server_info=self.server)

    def followed(self, **options: Any) -> str:
        return follow(self, "id", clock=self.clock, fetch="`fetch it`", **options)


def error_log(message: str) -> str:
    return f"2026-01-01 00:00:00,000 - controller - ERROR - {message}\n"


ROUND = "round {} of 4: validation Dice 0.500, 2 s"
ROUNDS = [ROUND.format(number) for number in (1, 2, 3, 4)]
UNREACHABLE = ConnectionError("cannot connect to server")
AWAY = "the FLARE server does not answer; retrying for 45 s"
DONE = ("FINISHED:COMPLETED", "")
FULL = "stopped: the disk is full (/run); 2 of 4 rounds are kept in /run\n  to continue: make room"


@pytest.mark.parametrize(
    ("script", "shown"),
    [
        (
            [
                *(("RUNNING", log_of(ROUNDS[0])), ("RUNNING", log_of(*ROUNDS[:2])), ("RUNNING", "")),
                *(("RUNNING", log_of(*ROUNDS[1:3])), ("FINISHED:COMPLETED", log_of(*ROUNDS[2:]))),
            ],
            ROUNDS,
        ),
        ([(UNREACHABLE, ""), (UNREACHABLE, ""), ("RUNNING", ""), (UNREACHABLE, ""), DONE], [AWAY, AWAY]),
        ([("SUBMITTED", "")] * 12 + [DONE], ["FLARE has not started job id yet: it needs answers from 2 sites"]),
        (
            [("RUNNING", "")] * 40 + [DONE],
            ["the run's process at the server has ended; FLARE waits up to 15 min for the sites' reports"],
        ),
    ],
    ids=["rounds, of a log that has lost its beginning", "server away", "sites away", "the server's process has ended"],
)
def test_followed_job_reports_each_message_once(script, shown, caplog):
    with caplog.at_level("INFO"):
        assert Job(*script, runs="process" not in shown[0]).followed() == "FINISHED:COMPLETED"
    assert [record.message for record in caplog.records] == shown


RESTARTED = "was restarted .*lists job id as {}, but no process runs it; 3 of 4 .*: this submits"
NO_ANSWER = "no answer .*job id for 45 s .*; at its last answer, 2 of 4 rounds .*to continue: start the server .*"
ONLY_NETWORK = "same command.*or, if only the network failed: `fetch it`"
NO_ROOM = "disk is full .* 2 of 4 rounds .*to continue: make room"


@pytest.mark.parametrize(
    ("states", "lost", "error"),
    [
        ([("RUNNING", log_of(*ROUNDS[:2])), (UNREACHABLE, "")], {}, NO_ANSWER + ONLY_NETWORK),
        ([("RUNNING", log_of(ROUNDS[2]))], {"runs": False, "started": 1000.0}, RESTARTED.format("RUNNING")),
        ([("DISPATCHED", log_of(ROUNDS[2]))], {"runs": False, "started": 1000.0}, RESTARTED.format("DISPATCHED")),
        ([("RUNNING", log_of(ROUNDS[1]) + error_log(FULL))], {"runs": False}, NO_ROOM),
    ],
)
def test_dead_server_stops_command_within_60_seconds(states, lost, error):
    job = Job(*states, **lost)
    with pytest.raises((Stopped, ServerReported), match=f"(?s){error}") as stopped:
        job.followed()
    assert stopped.value.exit_code == 3
    assert job.clock.now - 1000 < 60


@pytest.mark.parametrize(("interrupt", "code"), [(Terminated("SIGTERM"), 3), (KeyboardInterrupt(), 130)])
def test_interrupted_command_reports_stored_rounds_and_next_step(interrupt, code):
    job = Job(("RUNNING", log_of("resuming after round 2 of 4", ROUND.format(3))), (interrupt, log_of(ROUND.format(4))))
    text = r"(?s)FLARE job id continues; 4 of 4 rounds are stored.*to continue: `fetch it`; `nvflare job abort id` ends"
    with pytest.raises(Stopped, match=text) as stopped:
        job.followed()
    assert stopped.value.exit_code == code


def test_failed_deployment_is_reported_with_site(caplog):
    job = Job(("FINISHED:FAILED_TO_RUN", ""))
    job.detail = ["server: OK", "site-1: BYOC not permitted"]
    job.followed()
    assert [record.message for record in caplog.records] == ["FLARE did not deploy the job: site-1: BYOC not permitted"]


def test_unfinished_job_stops_command_after_timeout():
    with pytest.raises(Stopped, match=r"(?s)no end after 5 s; .*no round is stored yet.*to continue: `fetch it`"):
        Job(("RUNNING", "")).followed(timeout=5)


def downloaded(folder: Path, log: str, state: str = "") -> SimpleNamespace:
    (folder / "workspace").mkdir(parents=True)
    (folder / "workspace" / "log.txt").write_text(log)
    if state:
        write_status(folder / "workspace" / "samfed", state, "of this job")
    return SimpleNamespace(download_job_result=lambda job_id, into: str(folder))


@pytest.mark.parametrize(
    ("log", "state", "message"),
    [
        (log_of(ROUND.format(2)) + error_log(FULL) + log_of("end"), "running", FULL),
        (error_log(FULL), "", FULL),
        (log_of(ROUND.format(2)), "", "left no status\n  2 of 4 rounds are stored at the server"),
        (error_log("UnsafeComponentError: X"), "", "status\n  | 2026-01-01 00:00:00,000 - controller - ERROR - Unsafe"),
        ("", "done", "of this job"),
    ],
)
def test_status_falls_back_to_server_log(log, state, message, tmp_path):
    write_status(tmp_path / "out", "done", "of an earlier job")
    status = fetch_results(downloaded(tmp_path / "job", log, state), "id", tmp_path / "out")
    assert message in status["message"]
    assert status["exit_code"] == (0 if state == "done" else 3)
    assert not state or read_status(tmp_path / "out")["message"] == status["message"]


@pytest.mark.parametrize(
    "ours", [{"results.json": "{}"}, {"flare.run.json": "b"}, {"run.json": "{}", "flare.run.json": "b"}]
)
def test_results_of_another_run_are_not_overwritten(ours, tmp_path):
    session = downloaded(tmp_path / "job", "", "done")
    for name, text in {"flare.run.json": "a", "run.json": "{...}", "results.json": '{"a": 1}'}.items():
        (tmp_path / "job" / "workspace" / "samfed" / name).write_text(text)
    for name, text in ours.items():
        (tmp_path / name).write_text(text)
    again = "nothing was copied; run `samfed flare fetch id --kit KIT --output-dir OTHER`"
    with pytest.raises(Refused, match=f"or this run's folder, found the results of another run; {again}"):
        fetch_results(session, "id", tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir() if path.is_file()} == ours
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "run.json").write_text("of a run that was refused before its first round")
    fetch_results(session, "id", tmp_path / "new")
    fetch_results(session, "id", tmp_path / "new")
    assert (tmp_path / "new" / "results.json").read_text() == '{"a": 1}'
    fetch_results(session, "id", tmp_path / "new", "samfed flare submit samfed_skin")
    assert read_json(tmp_path / "new" / "results.json") == {"a": 1, "command": "samfed flare submit samfed_skin"}


def test_fetch_records_command_of_submit(tmp_path, monkeypatch):
    session = downloaded(tmp_path / "job", "", "done")
    (tmp_path / "job" / "workspace" / "samfed" / "results.json").write_text("{}")
    fakes = {"wait_for_sites": None, "submit_job": "7", "follow": "FINISHED"}
    for name, given in {"open_session": contextlib.nullcontext(session), **fakes}.items():
        monkeypatch.setattr(f"samfed_monai.flare.session.{name}", lambda *_, given=given, **__: given)
    kit, new = ["--kit=kit", f"--output-dir={tmp_path / 'out'}"], ["--rounds=1", "--sites={'a': {}, 'b': {}}"]
    assert main(["flare", "submit", "samfed_skin", *kit, *new, "--no-wait"]) == main(["flare", "fetch", "7", *kit]) == 0
    assert read_json(tmp_path / "out" / "results.json") == {"command": command_line()}


def test_failed_download_is_reported_with_server_log():
    def download(job_id: str, into: str) -> str:
        raise RuntimeError("no space left")

    session = SimpleNamespace(download_job_result=download)
    session.get_job_logs = lambda *_: {"logs": {"server": error_log(FULL)}}
    with pytest.raises(ServerReported, match="disk is full"):
        fetch_results(session, "id", "out")
    session.get_job_logs = lambda *_: {"logs": {}}
    with pytest.raises(Stopped, match="results of FLARE job id cannot be fetched: no space left"):
        fetch_results(session, "id", "out")


@pytest.mark.parametrize(
    ("name", "kind", "match"),
    [
        (
            "AuthorizationError",
            Refused,
            r"FLARE server at h:1: expected a permitted action, found the reason.*with that role",
        ),
        ("JobNotFound", Refused, "expected a job of this server, found the reason; `nvflare job list`"),
        ("NoConnection", Stopped, r"(?s)the FLARE server at h:1: the reason.*samfed flare fetch"),
        ("InternalError", Stopped, "the FLARE server at h:1: the reason"),
    ],
)
def test_flare_errors_are_reported_as_package_errors(name, kind, match, tmp_path, monkeypatch):
    from nvflare.fuel.flare_api import api_spec, flare_api

    kit = {"username": "a@b.c", "host": "h", "port": 1, "client_key": "k", "client_cert": "k", "ca_cert": "k"}
    write_json(tmp_path / "startup" / "fed_admin.json", {"admin": kit})
    (tmp_path / "startup" / "k").touch()
    closed: list[bool] = []
    session = SimpleNamespace(close=lambda: closed.append(True))
    monkeypatch.setattr(flare_api, "new_secure_session", lambda *_, **__: session)
    with pytest.raises(kind, match=match), open_session(tmp_path):
        raise getattr(api_spec, name)("the reason")
    assert closed == [True]


def test_run_status_is_read_from_file_or_log(tmp_path):
    assert read_status(tmp_path)["state"] == "none"
    write_status(tmp_path, "failed", "TypeError: a mistake", ExitCode.FAILED)
    with pytest.raises(ServerReported, match="TypeError: a mistake") as caught:
        raise_for_status(read_status(tmp_path))
    assert reported(caught.value) == 1
    write_status(tmp_path, "stopped", "round 1: below quorum", 3)
    with pytest.raises(ServerReported, match="below quorum") as caught:
        _wait(tmp_path, tmp_path / "log", str)
    assert caught.value.exit_code == 3
    (tmp_path / "flare.json").unlink()
    with pytest.raises(Stopped, match="it is gone"):
        _wait(tmp_path, tmp_path / "log", lambda: "it is gone")
    write_status(tmp_path, "running")  # the last that a full disk took
    (tmp_path / "log").write_text(error_log(FULL) + log_of("end"))
    with pytest.raises(ServerReported, match="disk is full"):
        _wait(tmp_path, tmp_path / "log", lambda: "it is gone")


class Full(FederationController):
    """A server whose disk is full."""

    def __init__(self, at: Path) -> None:
        super().__init__("first")
        self.fl_ctx = None
        self.at, self.on_this_machine, self.reasons = at, False, list[str]()

    def federate(self, folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/run/x")

    def run_folder(self) -> Path:
        return self.at / "run"

    def job_run_folder(self) -> Path:
        return self.at / "job"

    def system_panic(self, reason: str, fl_ctx: Any) -> None:
        self.reasons.append(reason)


@pytest.mark.parametrize("writes", [True, False])
def test_full_disk_at_server_stops_run_and_is_logged(tmp_path, monkeypatch, caplog, writes):
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/job")

    monkeypatch.setattr("samfed_monai.flare.controller.set_up_process", lambda: None)
    server = Full(tmp_path)
    if not writes:
        write_status(tmp_path / "run", "running")
        monkeypatch.setattr("samfed_monai.flare.session.write_json", full)
        monkeypatch.setattr("samfed_monai.flare.controller.publish", full)
    server.run()
    assert server.reasons == [str(machine_failure(OSError(errno.ENOSPC, "", "/run/x" if writes else "/job")))]
    assert caplog.records[0].message == server.reasons[0]
    if writes:
        assert read_status(tmp_path / "job" / "samfed")["message"] == server.reasons[0]
    else:
        assert "the disk is full (/job)" in caplog.records[-1].message


def test_invalid_site_file_of_server_is_reported_from_its_log(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("samfed_monai.flare.controller.set_up_process", lambda: None)
    monkeypatch.setenv("SAMFED_SITE", str(tmp_path / "nowhere.json"))
    monkeypatch.setattr(Full, "run_folder", lambda self: FederationController.run_folder(self))
    monkeypatch.setattr(Full, "kit_folder", lambda self: self.at)
    server = Full(tmp_path)
    server.run()
    job = Job(("RUNNING", error_log(caplog.records[0].message)), runs=False)
    with pytest.raises(ServerReported, match=r"server: samfed_site\.json: expected .*nowhere\.json, found no such"):
        job.followed()
    assert server.reasons == [caplog.records[0].message]


def test_only_messages_for_users_are_shown():
    lines = [
        "2026-01-01 10:00:00,123 - INFO - round 1 of 3: validation Dice 0.5, 2 s",
        "2026-01-01 10:00:00,123 - INFO - execute for task (train)",
        "2026-01-01 10:00:00,123 - wire_transport - WARNING - site-2: dropped a late answer (...)",
        "2026-01-01 10:00:00,123 - guard - WARNING - site-1 reports 90 training images, 90 % of all",
        "2026-01-01 10:00:00,123 - WARNING - site-2 failed: OSError",
        "2026-01-01 10:00:00,123 - byte_streamer - WARNING - Late stream error: channel=a: stream to site-2 failed: b",
        "round 1 of 3: written by something else",
    ]
    assert user_lines(lines) == [
        "round 1 of 3: validation Dice 0.5, 2 s",
        "site-2: dropped a late answer (...)",
        "site-1 reports 90 training images, 90 % of all",
        "site-2 failed: OSError",
    ]


def test_busy_port_is_refused_with_alternative():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        busy = rf"port {port}: .* found Address already in use; .*--port {port + 100}"
        with pytest.raises(Refused, match=busy):
            reserved_port(port).__enter__()
    with reserved_port(port):
        socket.create_server(("127.0.0.1", port)).close()  # a server can, and does not yet, listen
        with pytest.raises(Refused, match=busy):
            reserved_port(port).__enter__()
