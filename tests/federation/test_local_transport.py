"""A federation in one process: failures stay where they are, bytes are counted, signals go through."""

from __future__ import annotations

import pytest

from samfed_monai.federation import LocalTransport, Progress
from samfed_monai.protocol import Failure, Kind, Message, Task, to_bytes
from tests.federation.toys import QUIET, FixedClient, RogueClient, die, same, toy_algo, toy_weights, weights


def messages(*sites, tensors=None) -> dict[str, Message]:
    return {site: Message(Kind.WEIGHTS, site, 0, 1, tensors=tensors or weights()) for site in sites}


def local(*clients: FixedClient) -> LocalTransport:
    return LocalTransport({client.site: client for client in clients}, progress=QUIET)


def test_sites_answer_in_order_and_received_tensors_are_released():
    order = []
    transport = local(*map(FixedClient, "cab"))
    replies = transport.send_and_receive(Task.TRAIN, messages(*"cab"), on_reply=lambda site, _: order.append(site))
    assert order == ["a", "b", "c"]
    assert transport.sites == ("a", "b", "c")
    assert all(reply.tensors == {} for reply in replies.values())
    kept = local(FixedClient("a", step=1.0)).send_and_receive(Task.TRAIN, messages("a"))
    assert kept["a"].tensors["w"][0, 0].item() == 2.0, "no receiver has taken them"


def test_fault_41_58_failure_is_scrubbed_and_other_sites_continue(caplog):
    replies = local(RogueClient("a", change=die), FixedClient("b")).send_and_receive(Task.TRAIN, messages("a", "b"))
    assert isinstance(replies["a"], Failure)
    assert "Jane" not in replies["a"].reason
    assert "Jane" in caplog.text, "the site's own log has the whole story"
    assert isinstance(replies["b"], Message)


@pytest.mark.parametrize("signal", [KeyboardInterrupt, SystemExit])
def test_interrupts_are_propagated(signal):
    def stop(answer):
        raise signal

    with pytest.raises(signal):
        local(RogueClient("a", change=stop)).send_and_receive(Task.TRAIN, messages("a"))


def test_faults_42_and_46_unknown_and_unstarted_sites_are_failures():
    replies = local(FixedClient("a")).send_and_receive(Task.TRAIN, messages("a", "z"))
    assert replies["z"] == Failure("z", "no such site in this federation")
    replies = local(*map(FixedClient, "ab")).send_and_receive(Task.TRAIN, messages("a", "b"), timeout=-1)
    assert replies["a"] == Failure("a", "not started: the deadline of -1 s had passed")


def test_traffic_counts_serialized_bytes():
    transport, sent = local(FixedClient("a", n=3)), messages("a")
    reply = transport.send_and_receive(Task.TRAIN, sent)["a"]
    traffic = transport.take_traffic()["a"]
    assert (traffic.down, traffic.up) == (len(to_bytes(sent["a"])), len(to_bytes(reply)))
    assert transport.take_traffic() == {}


def test_client_states_are_saved_and_restored(tmp_path):
    name = "site 1/a"
    transport = LocalTransport({name: toy_algo(name), "plain": FixedClient("plain")}, progress=QUIET)
    transport.send_and_receive(Task.TRAIN, messages(name, tensors=toy_weights()))
    assert list(transport.save_state(tmp_path)) == ["site 1%2Fa.safetensors"]
    assert oct((tmp_path / "site 1%2Fa.safetensors").stat().st_mode)[-3:] == "600"
    fresh = LocalTransport({name: toy_algo(name)}, progress=QUIET)
    fresh.load_state(tmp_path)
    assert same(fresh.clients[name].state_dict(), transport.clients[name].state_dict())


def test_progress_is_shown_and_quiet_without_terminal(capsys):
    progress = Progress(show=True)
    with progress.rounds(3, 1):
        transport = LocalTransport({"site-1": toy_algo()}, progress=progress)
        transport.send_and_receive(Task.TRAIN, messages("site-1", tensors=toy_weights()))
    shown = capsys.readouterr().err
    for text in ("rounds:  33%", "train site-1", "iterations", "0/2"):
        assert text in shown
    LocalTransport({"a": FixedClient("a")}).send_and_receive(Task.TRAIN, messages("a"))
    assert capsys.readouterr().err == ""
