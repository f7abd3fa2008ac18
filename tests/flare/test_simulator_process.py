"""FLARE's simulator as we start it: the threads that start its clients do not write over each other."""

from __future__ import annotations

import threading

import pytest

pytest.importorskip("nvflare", reason="nvflare is not installed: pip install samfed-monai[flare]")

from samfed_monai.flare.simulator_process import SimulatorClientRunner, separate_clients


class _Runner:
    """What matters of FLARE's: threads write a client's name into ``build_ctx`` and later send the whole of it."""

    def __init__(self) -> None:
        self.build_ctx = {"client_name": "", "server_host": "here"}
        self.sent: dict[str, dict[str, str]] = {}

    def start(self, name: str, both_wrote: threading.Barrier) -> None:
        self.build_ctx["client_name"] = name
        both_wrote.wait(10)
        self.sent[name] = dict(self.build_ctx)


def _told(runner: _Runner) -> dict[str, str]:
    """The name that each of two clients is told where both threads write before either sends."""
    barrier = threading.Barrier(2)
    threads = [threading.Thread(target=runner.start, args=(name, barrier)) for name in ("site-1", "site-2")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert all(content["server_host"] == "here" for content in runner.sent.values())
    return {name: content["client_name"] for name, content in runner.sent.items()}


def test_each_thread_sends_the_name_that_it_wrote():
    one_of_two = set(_told(_Runner()).values())
    assert len(one_of_two) == 1  # FLARE's race: both clients get one name

    class Separate(_Runner):
        pass

    separate_clients(Separate)
    assert _told(Separate()) == {"site-1": "site-1", "site-2": "site-2"}


def test_a_new_content_replaces_what_threads_had_and_objects_are_apart():
    class Separate(_Runner):
        pass

    separate_clients(Separate)
    one, other = Separate(), Separate()
    one.build_ctx["client_name"] = "site-1"
    assert other.build_ctx["client_name"] == ""
    one.build_ctx = {"client_name": "new"}
    assert one.build_ctx == {"client_name": "new"}


def test_flares_own_runner_is_separated():
    clients = [object(), object()]
    given = {"client_name": "site-1"}
    arguments = type("Arguments", (), {"workspace": "here", "set": None})()
    runner = SimulatorClientRunner("", arguments, clients, {}, None, given)
    runner.build_ctx["client_name"] = "site-2"
    assert given == {"client_name": "site-1"}
    assert runner.build_ctx["client_name"] == "site-2"
