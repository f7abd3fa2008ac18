"""A federation in one process: failures stay where they are, bytes are counted, signals go through."""

from __future__ import annotations

import pytest
import torch

from samfed_monai.federation import LocalTransport, Progress
from samfed_monai.protocol import Failure, Kind, Message, Task, to_bytes
from tests.federation.toys import QUIET, FixedClient, RogueClient, toy_algo, toy_weights, weights


def messages(*sites) -> dict[str, Message]:
    return {site: Message(Kind.WEIGHTS, site, 0, 1, tensors=weights()) for site in sites}


def die(answer):
    raise RuntimeError("/data/Jane Doe.png")


def test_every_site_answers_in_the_order_of_names():
    order = []
    transport = LocalTransport({site: FixedClient(site) for site in "cab"}, progress=QUIET)
    replies = transport.send_and_receive(Task.TRAIN, messages(*"cab"), on_reply=lambda site, reply: order.append(site))
    assert order == ["a", "b", "c"]
    assert transport.sites == ("a", "b", "c")
    assert all(reply.tensors == {} for reply in replies.values()), "what was taken in is let go"


def test_without_a_receiver_answers_keep_their_tensors():
    replies = LocalTransport({"a": FixedClient("a", step=1.0)}, progress=QUIET).send_and_receive(
        Task.TRAIN, messages("a")
    )
    assert replies["a"].tensors["w"][0, 0].item() == 2.0


def test_fault_41_58_a_failure_is_scrubbed_and_others_go_on(caplog):
    clients = {"a": RogueClient("a", change=die), "b": FixedClient("b")}
    replies = LocalTransport(clients, progress=QUIET).send_and_receive(Task.TRAIN, messages("a", "b"))
    assert isinstance(replies["a"], Failure)
    assert "Jane" not in replies["a"].reason
    assert "Jane" in caplog.text, "the site's own log has the whole story"
    assert isinstance(replies["b"], Message)


@pytest.mark.parametrize("signal", [KeyboardInterrupt, SystemExit])
def test_interruptions_go_through(signal):
    def stop(answer):
        raise signal

    with pytest.raises(signal):
        LocalTransport({"a": RogueClient("a", change=stop)}, progress=QUIET).send_and_receive(Task.TRAIN, messages("a"))


def test_a_refusing_receiver_makes_a_failure_with_its_reason():
    def refuse(site, reply):
        reply.check(up=True, like={"other": torch.ones(1)})

    replies = LocalTransport({"a": FixedClient("a")}, progress=QUIET).send_and_receive(
        Task.TRAIN, messages("a"), on_reply=refuse
    )
    expected = "the network's own names, and of those what is shared alone"
    assert replies["a"].reason.startswith(f"message -> tensors: expected {expected}, found 3 with unknown names; ")


def test_fault_46_an_unknown_site_is_a_failure():
    replies = LocalTransport({"a": FixedClient("a")}, progress=QUIET).send_and_receive(Task.TRAIN, messages("a", "z"))
    assert replies["z"] == Failure("z", "no such site in this federation")


def test_fault_42_sites_that_have_not_started_at_the_deadline_are_left_out():
    clients = {site: FixedClient(site) for site in "ab"}
    replies = LocalTransport(clients, progress=QUIET).send_and_receive(Task.TRAIN, messages("a", "b"), timeout=-1)
    assert replies["a"] == Failure("a", "not started: the deadline of -1 s had passed")


def test_bytes_are_those_of_the_wire():
    transport = LocalTransport({"a": FixedClient("a", n=3)}, progress=QUIET)
    sent = messages("a")
    reply = transport.send_and_receive(Task.TRAIN, sent)["a"]
    traffic = transport.take_traffic()["a"]
    assert (traffic.down, traffic.up) == (len(to_bytes(sent["a"])), len(to_bytes(reply)))
    assert transport.take_traffic() == {}


def test_states_there_and_back(tmp_path):
    transport = LocalTransport({"site 1/a": toy_algo("site 1/a"), "plain": FixedClient("plain")}, progress=QUIET)
    message = {"site 1/a": Message(Kind.WEIGHTS, "site 1/a", 0, 1, tensors=toy_weights())}
    transport.send_and_receive(Task.TRAIN, message)
    hashes = transport.save_state(tmp_path)
    assert list(hashes) == ["site 1%2Fa.safetensors"]
    assert oct((tmp_path / "site 1%2Fa.safetensors").stat().st_mode)[-3:] == "600"
    fresh = LocalTransport({"site 1/a": toy_algo("site 1/a")}, progress=QUIET)
    fresh.load_state(tmp_path)
    expected = transport.clients["site 1/a"].state_dict()
    state = fresh.clients["site 1/a"].state_dict()
    assert all(torch.equal(state[name], expected[name]) for name in expected)


def test_progress_shows_rounds_sites_and_iterations(capsys):
    progress = Progress(show=True)
    with progress.rounds(3, 1):
        LocalTransport({"site-1": toy_algo()}, progress=progress).send_and_receive(
            Task.TRAIN, {"site-1": Message(Kind.WEIGHTS, "site-1", 0, 1, tensors=toy_weights())}
        )
    shown = capsys.readouterr().err
    for text in ("rounds:  33%", "train site-1", "iterations", "0/2"):
        assert text in shown


def test_progress_is_quiet_without_a_terminal(capsys):
    LocalTransport({"a": FixedClient("a")}).send_and_receive(Task.TRAIN, messages("a"))
    assert capsys.readouterr().err == ""
