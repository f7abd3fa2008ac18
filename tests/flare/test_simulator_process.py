"""FLARE's simulator as we start it: the threads that start its clients do not write over each other."""

from __future__ import annotations

import pickle
import threading

import pytest

pytest.importorskip("nvflare", reason="nvflare is not installed: pip install samfed-monai[flare]")

from nvflare.private.fed.app.simulator import simulator_runner

from samfed_monai.flare.simulator_process import ClientRunner


def test_simulator_threads_keep_separate_client_names():
    assert simulator_runner.SimulatorClientRunner is ClientRunner
    given = {"client_name": "", "server_host": "here"}
    arguments = type("Arguments", (), {"workspace": "here", "set": None})()
    runner = ClientRunner("", arguments, [object(), object()], {}, None, given)
    both_wrote, sent = threading.Barrier(2), {}

    def start(name: str) -> None:
        runner.build_ctx["client_name"] = name
        both_wrote.wait(10)
        sent[name] = pickle.loads(pickle.dumps(runner.build_ctx))

    threads = [threading.Thread(target=start, args=(name,)) for name in ("site-1", "site-2")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sent == {name: {"client_name": name, "server_host": "here"} for name in ("site-1", "site-2")}
    assert given["client_name"] == ""
