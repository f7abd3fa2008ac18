"""What lies on disk: site files and their limits, the list of classes, the job, a site's states, a run's status."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from samfed_monai.config.bundles import packaged_bundle
from samfed_monai.config.exit_codes import message_and_code
from samfed_monai.core.errors import ExitCode, Refused, Stopped
from samfed_monai.core.io import read_json, write_json
from samfed_monai.federation.plan import Plan
from samfed_monai.federation.privacy.settings import PrivacyFloor
from samfed_monai.flare.controller import FederationController
from samfed_monai.flare.job import NEEDED, allow_list_snippet, export_job, merge_allow_list, planned
from samfed_monai.flare.local import Processes
from samfed_monai.flare.session import accepts_certificate, admin_of, open_session, publish, wait_for_sites
from samfed_monai.flare.site import SiteState, places_of, read_plan, site_node
from samfed_monai.flare.site_file import forget_old_runs, read_site_file
from samfed_monai.flare.watch import (
    Told,
    Watch,
    clear_status,
    raise_as_told,
    read_status,
    refuse_busy_port,
    told_in,
    write_status,
)
from samfed_monai.flare.worker import _Worker
from samfed_monai.protocol.message import Envelope, Kind, MessageRefused, to_bytes
from samfed_monai.protocol.transport import Task


def site_file(folder: Path, **content: Any) -> Path:
    (folder / "list.json").write_text("{}")
    places = {"datalist": str(folder / "list.json"), "data_root": str(folder), "cache_dir": str(folder / "cache")}
    write_json(folder / "local" / "samfed_site.json", {**places, "runs_dir": str(folder / "runs"), **content})
    return folder


def test_a_site_file_is_found_above_the_jobs_folder(tmp_path):
    site_file(tmp_path)
    inside = tmp_path / "job" / "app_site-1"
    inside.mkdir(parents=True)
    files = read_site_file(inside, "site-1")
    assert files.run_folder("first") == tmp_path / "runs" / "first"
    assert files.cache_dir == tmp_path / "cache"


def test_every_problem_of_a_site_file_is_told_at_once(tmp_path):
    site_file(tmp_path, datalst="x", data_root=str(tmp_path / "nowhere"), threads=0, cache_dir="", runs_dir="")
    with pytest.raises(Refused) as refused:
        read_site_file(tmp_path)
    text = str(refused.value)
    for part in ("datalst.*unknown key.*datalist", "nowhere, which does not exist", "threads.*a number above 0"):
        assert __import__("re").search(part, text), part
    assert "cache_dir: expected a path, found nothing" in text
    assert "runs_dir" in text


def test_a_missing_site_file_names_the_place_and_the_guide(tmp_path):
    with pytest.raises(Refused, match=r"site-1: samfed_site.json.*local/samfed_site.json.*docs/deploy.md"):
        read_site_file(tmp_path, "site-1")


def test_the_variable_may_name_a_folder_of_site_files(tmp_path, monkeypatch):
    site_file(tmp_path)
    (tmp_path / "local" / "samfed_site.json").rename(tmp_path / "site-2.json")
    monkeypatch.setenv("SAMFED_SITE", str(tmp_path))
    assert read_site_file("/", "site-2").path == tmp_path / "site-2.json"
    with pytest.raises(Refused, match=r"site-9.json"):
        read_site_file("/", "site-9")


def test_flares_list_of_classes_is_added_to_and_nothing_is_lost(tmp_path):
    write_json(tmp_path / "resources.json.default", {"class_allow_list": ["nvflare.app_x.A"], "components": [1]})
    merge_allow_list(tmp_path, ["tests."])
    merge_allow_list(tmp_path)
    content = read_json(tmp_path / "resources.json")
    assert content == {"class_allow_list": ["nvflare.app_x.A", *NEEDED, "tests."], "components": [1]}
    assert json.loads(allow_list_snippet()) == {"class_allow_list": list(NEEDED)}
    assert not any(name.endswith(".") for name in NEEDED), "single classes, no prefix"


def test_a_workspace_without_a_list_starts_from_flares_own(tmp_path):
    merge_allow_list(tmp_path / "local")
    names = read_json(tmp_path / "local" / "resources.json")["class_allow_list"]
    assert "nvflare.app_common.workflows.fedavg.FedAvg" in names
    assert names[-2:] == list(NEEDED)


def test_a_job_is_four_json_files_and_no_code(tmp_path):
    job = export_job(tmp_path / "job", {"rounds": 3}, run_name="first", min_clients=2)
    files = sorted(str(path.relative_to(job)) for path in job.rglob("*") if path.is_file())
    config = "app/config"
    assert files == [
        f"{config}/config_fed_client.json",
        f"{config}/config_fed_server.json",
        f"{config}/samfed_plan.json",
        "meta.json",
    ]
    assert read_json(job / "meta.json")["min_clients"] == 2
    assert read_json(job / config / "samfed_plan.json") == {"rounds": 3}
    paths = {read_json(job / config / "config_fed_server.json")["workflows"][0]["path"]}
    paths.add(read_json(job / config / "config_fed_client.json")["executors"][0]["executor"]["path"])
    assert paths == set(NEEDED)


@pytest.mark.parametrize("name", ["../x", "/etc/x", "..", "", "a/b", "a\\b", "a\n", "a" * 101])
def test_a_run_name_that_is_a_path_is_refused(tmp_path, name):
    with pytest.raises(Refused, match=r"--run-name: expected up to 100 letters, .*; submit the job with another"):
        export_job(tmp_path, {}, run_name=name)
    with pytest.raises(Refused, match=r"config_fed_server.json -> run_name: expected up to 100 letters"):
        FederationController(name)


PLAN = {"bundle": "samfed_skin", "rounds": 2, "sites": {"site-1": {}, "site-2": {}}}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"client": {"learning_rate": "$__import__('os')"}}, "learning_rate"),
        ({"client": {"loss": {"_target_": "os.system"}}}, r"os\.system"),
        ({"sites": {"site-1": {"loss#_target_": "subprocess.run"}}}, r"subprocess\.run"),
        ({"teacher": {"checkpoint": "/etc/passwd"}}, "checkpoint"),
        ({"bundle": "../../tmp/evil"}, "a bundle's name, not a path"),
        ({"round": 1}, "unknown key"),
    ],
)
def test_fault_31_a_plan_that_could_become_code_is_refused_at_the_site(tmp_path, change, match):
    write_json(tmp_path / "plan.json", {**PLAN, **change})
    with pytest.raises(Refused, match=match):
        read_plan(tmp_path / "plan.json")


def test_a_plan_that_says_where_to_write_or_what_to_read_is_refused_at_the_site(tmp_path):
    table = {"_target_": "samfed_monai.handlers.TermTable", "path": "/home/v/.bashrc"}
    write_json(tmp_path / "plan.json", {**PLAN, "client": {"after#logger": table, "sharing#plain#split": "test"}})
    with pytest.raises(Refused) as refused:
        read_plan(tmp_path / "plan.json")
    assert [problem.where for problem in refused.value.problems] == [
        "plan -> client#after#logger#path",
        "plan -> client#sharing#plain#split",
    ]


def test_a_folder_that_came_with_the_job_does_not_stand_for_the_installed_bundle(tmp_path, monkeypatch):
    write_json(tmp_path / "samfed_skin" / "configs" / "metadata.json", {})
    write_json(tmp_path / "mine" / "configs" / "metadata.json", {})
    monkeypatch.chdir(tmp_path)
    plan = Plan.from_json(PLAN)
    files = read_site_file(site_file(tmp_path))
    assert places_of(files, plan, tmp_path).bundle_root == packaged_bundle("samfed_skin")
    own = read_site_file(site_file(tmp_path, bundle_root=str(tmp_path / "mine")))
    assert places_of(own, plan, tmp_path).bundle_root == tmp_path / "mine"
    with pytest.raises(Refused, match=r"bundle: expected one of .*, found 'mine'"):
        places_of(files, Plan.from_json({**PLAN, "bundle": "mine"}), tmp_path)


def test_a_site_file_may_ask_for_more_privacy_than_the_plan(tmp_path, monkeypatch):
    write_json(tmp_path / "plan.json", PLAN)
    files = read_site_file(site_file(tmp_path, least_images=8, epsilon=2.5))
    asked = {}
    monkeypatch.setattr("samfed_monai.flare.site.SiteNode", lambda *_, floor: asked.update(floor=floor))
    settings = {"site": "site-1", "plan": str(tmp_path / "plan.json"), "run_folder": str(tmp_path)}
    site_node(settings, files)
    assert asked == {"floor": PrivacyFloor(8, 2.5)}
    site_node(settings, read_site_file(site_file(tmp_path)))
    assert asked == {"floor": PrivacyFloor()}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        *(({"least_images": value}, "a whole number >= 1") for value in (0, 2.0, True, "5")),
        *(({"epsilon": value}, "a number above 0") for value in (0, -1.0, float("nan"), float("inf"), "1")),
    ],
)
def test_a_floor_that_is_none_is_refused(tmp_path, change, expected):
    site_file(tmp_path)
    path = tmp_path / "local" / "samfed_site.json"
    path.write_text(json.dumps({**read_json(path), **change}))
    with pytest.raises(Refused, match=f"samfed_site.json -> {next(iter(change))}: expected {expected}"):
        read_site_file(tmp_path)


def test_a_plain_plan_is_read(tmp_path):
    write_json(tmp_path / "plan.json", {**PLAN, "client": {"image_size": 64}})
    assert read_plan(tmp_path / "plan.json").client == {"image_size": 64}


class Counter:
    """Holds one number."""

    def __init__(self) -> None:
        self.value = torch.zeros(1)

    def state_dict(self) -> dict:
        return {"value": self.value.clone()}

    def load_state_dict(self, state: dict) -> None:
        self.value = state["value"]


def trained(state: SiteState, round: int, keep: tuple[int, ...] = ()) -> float:
    state.before(Task.TRAIN, round)
    state.holder.value = state.holder.value + 1
    state.after(Task.TRAIN, round, keep)
    return state.holder.value.item()


def test_a_fresh_process_goes_on_from_the_newest_state_before_the_round(tmp_path):
    first = SiteState(tmp_path, Counter())
    assert [trained(first, number) for number in range(3)] == [1, 2, 3]
    again = SiteState(tmp_path, Counter())
    assert trained(again, 2) == 3, "round 2 was trained, and is trained again"
    assert trained(SiteState(tmp_path, Counter()), 7) == 4, "rounds that this site missed are stepped over"


def test_a_run_that_goes_on_is_prepared_again_and_keeps_its_states(tmp_path):
    first = SiteState(tmp_path, Counter())
    for number in range(3):
        trained(first, number)
    again = SiteState(tmp_path, Counter())
    again.after(Task.PREPARE, 0)
    assert trained(again, 3) == 4


def test_a_failed_round_is_undone_before_the_next(tmp_path):
    state = SiteState(tmp_path, Counter())
    trained(state, 0)
    state.before(Task.TRAIN, 1)
    state.holder.value += 100
    state.failed()
    assert trained(state, 2) == 2


def test_evaluation_of_an_earlier_round_looks_at_its_state_and_training_goes_on(tmp_path):
    state = SiteState(tmp_path, Counter())
    for number in range(3):
        trained(state, number, keep=(0,))
    state.before(Task.EVALUATE, 0)
    assert state.holder.value.item() == 1
    assert trained(state, 3, keep=(0, 2)) == 4
    assert sorted(path.name for path in tmp_path.glob("*")) == [f"00{n}.safetensors" for n in (0, 2, 3)]


def test_a_round_that_the_site_missed_is_stood_for_by_the_one_before_it(tmp_path):
    state = SiteState(tmp_path, Counter())
    for number in (0, 1, 2, 4, 5, 6):
        trained(state, number, keep=(3,))
    state.before(Task.EVALUATE, 3)
    assert state.holder.value.item() == 3, "that of round 2"
    assert sorted(path.name for path in tmp_path.glob("*")) == [f"00{n}.safetensors" for n in (2, 5, 6)]


def test_the_teachers_exam_does_not_move_the_state(tmp_path):
    """It comes before round 0, where a start that was given up may have left a state of round 0."""

    class Node(Counter):
        def answer(self, task, message):
            if task == Task.TRAIN:
                self.value = self.value + 1
            return message

    def ask(worker, task, round, **extra):
        message = Envelope(Kind.METRICS, "site-1", round, 3, extra=extra)
        return worker.answer({"task": task.value, "keep": []}, to_bytes(message))

    def starts() -> _Worker:
        return _Worker({"state": str(tmp_path)}, None, lambda *_: Node())

    first = starts()
    ask(first, Task.PREPARE, 0)
    ask(first, Task.TRAIN, 0)
    again = starts()
    ask(again, Task.EVALUATE, 0, split="test", model="teacher")
    ask(again, Task.PREPARE, 0)
    ask(again, Task.TRAIN, 0)
    assert again._node.value.item() == 1


def test_a_run_that_failed_by_our_mistake_ends_the_command_with_1(tmp_path):
    write_status(tmp_path, "failed", "TypeError: a mistake", ExitCode.FAILED)
    with pytest.raises(Told, match="TypeError: a mistake") as told:
        raise_as_told(read_status(tmp_path))
    assert message_and_code(told.value)[1] == 1


def test_what_a_submitter_needs_is_published_the_runs_name_included(tmp_path):
    for name in ("run.json", "results.json", "flare.run.json", "rounds/001/round.json", "cache/own.safetensors"):
        (tmp_path / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / name).write_text("{}")
    publish(tmp_path / "run", tmp_path / "job")
    published = {path.relative_to(tmp_path / "job").as_posix() for path in tmp_path.glob("job/**/*") if path.is_file()}
    assert published == {
        f"samfed/{name}" for name in ("run.json", "results.json", "flare.run.json", "rounds/001/round.json")
    }


def test_states_are_private_to_the_site(tmp_path):
    trained(SiteState(tmp_path, Counter()), 0)
    assert (tmp_path / "000.safetensors").stat().st_mode & 0o777 == 0o600


def test_states_of_old_runs_are_removed_and_whoever_asks_for_them_is_told(tmp_path):
    for day, run in enumerate(("first", "second", "third", "fourth"), 1):
        trained(SiteState(tmp_path / run / "site-1", Counter()), 0)
        (tmp_path / run / "site-1" / "worker.log").touch()
        os.utime(tmp_path / run / "site-1" / "000.safetensors", (day * 86400, day * 86400))
    assert forget_old_runs(tmp_path, "first", kept=2, now=3.5 * 86400) == ["second"], "third was in use a moment ago"
    assert forget_old_runs(tmp_path, "fifth", kept=2, now=10 * 86400) == ["third", "first"]
    assert [path.parent.parent.name for path in tmp_path.glob("*/*/*.safetensors")] == ["fourth"]
    assert (tmp_path / "first" / "site-1" / "worker.log").is_file()
    again = SiteState(tmp_path / "first" / "site-1", Counter())
    for task, round in ((Task.TRAIN, 1), (Task.EVALUATE, 0)):
        with pytest.raises(MessageRefused, match=r"removed: a site keeps those of the newest 3 runs.*another name"):
            again.before(task, round)
    assert trained(again, 0) == 1, "a run that begins anew needs none"
    assert trained(again, 1) == 2


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"sites": {"site-1": {"device": "cuda:1"}}}, "sites#site-1#device"),
        ({"teacher#checkpoint": __file__}, "teacher#checkpoint"),
        ({"client#device": "cuda:1"}, "client#device"),
    ],
)
def test_a_job_names_no_place_of_a_site(given, match):
    sites: dict[str, Any] = {"site-1": {}, "site-2": {}} | given.get("sites", {})
    with pytest.raises(Refused, match=rf"{match}.*found a place.*samfed_site\.json"):
        planned("samfed_skin", {"rounds": 1, **given, "sites": sites}, here=False)


def test_the_status_of_a_run_is_its_own_file(tmp_path):
    assert read_status(tmp_path)["state"] == "none"
    write_status(tmp_path, "stopped", "round 1: below quorum", 3)
    with pytest.raises(Told, match="below quorum") as told:
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
    assert told_in(lines) == [
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


def test_a_mark_ends_processes_that_left_their_group(tmp_path):
    import sys

    code = (
        "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], "
        "start_new_session=True); time.sleep(60)"
    )
    import time

    with Processes() as processes:
        processes.start("parent", [sys.executable, "-c", code], cwd=tmp_path, log=tmp_path / "log")
        deadline = time.monotonic() + 10
        while len(processes.marked()) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(processes.marked()) == 2
    assert processes.marked() == []


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


def test_jobs_of_one_system_lie_in_its_own_server(tmp_path):
    from samfed_monai.flare.local import SERVER, Poc

    for name in ("server", "site-1"):
        write_json(tmp_path / "sites" / f"{name}.json", {})
    poc = Poc(tmp_path / "poc", ["site-1"], port=1)
    poc.provision(tmp_path / "sites")
    text = (poc.kits / SERVER / "local" / "resources.json").read_text()
    assert "/tmp/nvflare" not in text
    assert f"{poc.kits / SERVER}/jobs-storage" in text
    assert all(name in text for name in NEEDED)


def test_a_site_that_is_silent_for_long_is_not_connected():
    def client(name: str, heard: float) -> SimpleNamespace:
        return SimpleNamespace(name=name, last_connect_time=heard)

    listed = [client("site-1", 1000.0), client("site-2", 880.0)]
    session = SimpleNamespace(get_system_info=lambda: SimpleNamespace(client_info=listed))
    with pytest.raises(Stopped, match="not connected to the server after 0 s: site-2"):
        wait_for_sites(session, ["site-1", "site-2"], timeout=0)
    listed.append(client("site-2", 995.0))  # started again: another entry of the same name
    wait_for_sites(session, ["site-1", "site-2"], timeout=0)


def test_without_flare_every_way_says_how_to_install_it(monkeypatch, capsys):
    from samfed_monai.cli.main import main
    from samfed_monai.flare import needs

    monkeypatch.setattr(needs, "find_spec", lambda name: None)
    words = ["--datalist", "l", "--data-root", "d", "--rounds", "1", "--output-dir", "o"]
    assert main(["flare", "simulate", "samfed_skin", *words]) == 2
    assert "pip install samfed-monai[flare]" in capsys.readouterr().err


SCRIPT = """
import os, resource, sys
from pathlib import Path
from samfed_monai.flare.site_file import limit
from samfed_monai.flare.site_file import SiteFile

limit(SiteFile(*[Path()] * 4, **eval(sys.argv[1])))
print(os.environ.get("SAMFED_WEIGHTS"), resource.getrlimit(resource.RLIMIT_DATA)[0], "torch" in sys.modules)
"""


@pytest.mark.parametrize(
    ("says", "said"),
    [
        ("{}", "None -1 False"),
        ("{'weights': Path('/w'), 'memory_limit_gib': 1.5}", f"/w {3 * 512 * 1024**2} False"),
    ],
)
def test_memory_and_the_folder_of_checkpoints_are_set_without_torch(says, said, monkeypatch):
    monkeypatch.delenv("SAMFED_WEIGHTS", raising=False)
    done = subprocess.run([sys.executable, "-c", SCRIPT, says], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == said
