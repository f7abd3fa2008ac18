"""Start-up kits, servers that cannot be reached, sites that are silent, and what a submitter gets."""

from __future__ import annotations

import contextlib
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from samfed_monai.core.errors import Refused, Stopped
from samfed_monai.core.io import write_json
from samfed_monai.flare.session import (
    accepts_certificate,
    admin_of,
    follow,
    open_session,
    publish,
    wait_for_sites,
)


def test_what_a_submitter_needs_is_published_the_runs_name_included(tmp_path):
    for name in ("run.json", "results.json", "flare.run.json", "rounds/001/round.json", "cache/own.safetensors"):
        (tmp_path / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / name).write_text("{}")
    publish(tmp_path / "run", tmp_path / "job")
    published = {path.relative_to(tmp_path / "job").as_posix() for path in tmp_path.glob("job/**/*") if path.is_file()}
    assert published == {
        f"samfed/{name}" for name in ("run.json", "results.json", "flare.run.json", "rounds/001/round.json")
    }


def test_another_kit_than_an_admins_is_refused_by_what_it_is(tmp_path):
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
def test_a_server_that_cannot_be_reached_is_named_with_what_to_do(tmp_path):
    from samfed_monai.flare.local import Poc

    places = tmp_path / "sites"
    for name in ("server", "site-1"):
        write_json(places / f"{name}.json", {})
    poc = Poc(tmp_path / "poc", ["site-1"], port=1)
    poc.provision(places)
    assert admin_of(poc.admin) == "admin@samfed.local"
    with (
        pytest.raises(Stopped, match=r"localhost:1 cannot be reached(.|\n)*start the server"),
        open_session(poc.admin, timeout=3),
    ):
        pass


@pytest.mark.slow
def test_a_kit_of_another_provisioning_is_told_from_a_server_that_is_not_there(tmp_path):
    import socket
    import ssl

    from samfed_monai.flare.local import SERVER, Poc

    for name in ("server", "site-1"):
        write_json(tmp_path / "sites" / f"{name}.json", {})
    with socket.create_server(("127.0.0.1", 0)) as listening:
        ours, other = (Poc(tmp_path / name, ["site-1"], port=listening.getsockname()[1]) for name in ("ours", "other"))
        for system in (ours, other):
            system.provision(tmp_path / "sites")
        startup = ours.kits / SERVER / "startup"
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(startup / "server.crt", startup / "server.key")
        threading.Thread(target=_handshakes, args=(listening, context), daemon=True).start()
        assert accepts_certificate(ours.admin) is True
        with (
            pytest.raises(Refused, match=r"expected a user of this project.*a start-up kit of the same provisioning"),
            open_session(other.admin, timeout=3),
        ):
            pass
        listening.shutdown(socket.SHUT_RDWR)  # a thread that waits in accept() would keep the port open
    assert accepts_certificate(ours.admin) is None


def _handshakes(listening: Any, context: Any) -> None:
    while True:
        try:
            raw, _ = listening.accept()
        except OSError:
            return
        with contextlib.suppress(OSError), context.wrap_socket(raw, server_side=True):
            pass


def test_a_site_that_is_silent_for_long_is_not_connected():
    def client(name: str, heard: float) -> SimpleNamespace:
        return SimpleNamespace(name=name, last_connect_time=heard)

    listed = [client("site-1", 1000.0), client("site-2", 880.0)]
    session = SimpleNamespace(get_system_info=lambda: SimpleNamespace(client_info=listed))
    with pytest.raises(Stopped, match="not connected to the server after 0 s: site-2"):
        wait_for_sites(session, ["site-1", "site-2"], timeout=0)
    listed.append(client("site-2", 995.0))  # started again: another entry of the same name
    wait_for_sites(session, ["site-1", "site-2"], timeout=0)


def log_of(*lines: str) -> str:
    return "".join(f"2026-01-01 00:00:00,000 - INFO - {line}\n" for line in lines)


class Job:
    """A session in which a job's status and log are those of a script; an exception is raised in its place."""

    def __init__(self, *script: tuple[Any, str]) -> None:
        self.script, self.log = list(script), ""

    def get_job_meta(self, job_id: str) -> dict[str, str]:
        status, self.log = self.script.pop(0)
        if isinstance(status, Exception):
            raise status
        return {"status": status}

    def get_job_logs(self, job_id: str, target: str) -> str:
        return self.log


def test_rounds_are_told_once_also_where_the_log_has_lost_its_beginning(caplog):
    rounds = [f"round {number} of 4: validation Dice 0.5" for number in (1, 2, 3, 4)]
    job = Job(
        ("RUNNING", log_of(rounds[0])),
        ("RUNNING", log_of(*rounds[:2])),
        ("RUNNING", ""),
        ("RUNNING", log_of(*rounds[1:3])),
        ("FINISHED:COMPLETED", log_of(*rounds[2:])),
    )
    with caplog.at_level("INFO"):
        assert follow(job, "id", poll=0, look=0) == "FINISHED:COMPLETED"
    assert [record.message for record in caplog.records] == rounds


def test_a_server_that_is_away_for_a_while_is_asked_again(caplog):
    lost = ConnectionError("cannot connect to server")
    assert follow(Job((lost, ""), (lost, ""), ("FINISHED:COMPLETED", "")), "id", poll=0) == "FINISHED:COMPLETED"
    assert [record.message for record in caplog.records] == ["the FLARE server does not answer; asking again for 300 s"]
    with pytest.raises(Stopped, match=r"(?s)no answer .* FLARE job id.*`samfed flare fetch JOB --kit KIT"):
        follow(Job((lost, ""), (lost, "")), "id", poll=0.01, lost=0)
    with pytest.raises(Stopped, match=r"(?s)FLARE job id still runs.*samfed flare fetch"):
        follow(Job(("RUNNING", ""), ("RUNNING", "")), "id", poll=0.01, timeout=0)


@pytest.mark.parametrize(
    ("name", "kind", "match"),
    [
        (
            "AuthorizationError",
            Refused,
            r"FLARE server h:1: expected what this user may do .*found told.*with that role",
        ),
        ("JobNotFound", Refused, "expected a job of that server, found told; `nvflare job list`"),
        ("NoConnection", Stopped, r"(?s)the FLARE server at h:1: told.*samfed flare fetch"),
        ("InternalError", Stopped, "the FLARE server at h:1: told"),
    ],
)
def test_what_flare_reports_in_a_session_is_told_as_ours(name, kind, match, tmp_path, monkeypatch):
    from nvflare.fuel.flare_api import api_spec, flare_api

    kit = {"username": "a@b.c", "host": "h", "port": 1, "client_key": "k", "client_cert": "k", "ca_cert": "k"}
    write_json(tmp_path / "startup" / "fed_admin.json", {"admin": kit})
    (tmp_path / "startup" / "k").touch()
    closed: list[bool] = []
    session = SimpleNamespace(close=lambda: closed.append(True))
    monkeypatch.setattr(flare_api, "new_secure_session", lambda *_, **__: session)
    with pytest.raises(kind, match=match), open_session(tmp_path):
        raise getattr(api_spec, name)("told")
    assert closed == [True]
