"""Weighted averaging: exact numbers, counters, half precision and failures; robust rules are in ``test_robust.py``."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from samfed_monai.methods.fedavg import FedAvg, PersonalFedAvg
from samfed_monai.protocol import Kind, Message, Server
from tests.federation.toys import weights
from tests.methods.rounds import VALUES, a_round, attach, combine, update, weights_after

UPDATES = st.lists(st.tuples(st.integers(1, 1000), st.lists(VALUES, min_size=3, max_size=3)), min_size=1, max_size=6)


@given(UPDATES)
def test_aggregate_is_weighted_mean(updates):
    found = combine(FedAvg(), [row for _, row in updates], counts=[n for n, _ in updates])
    values = torch.tensor([row for _, row in updates], dtype=torch.float64)
    counts = torch.tensor([n for n, _ in updates], dtype=torch.float64)
    expected = (counts[:, None] * values).sum(0) / counts.sum()
    torch.testing.assert_close(torch.tensor(found, dtype=torch.float64), expected, atol=1e-4, rtol=0)
    assert combine(FedAvg(), [[0.0, 4.0, 8.0], [4.0, 0.0, -8.0]], counts=[1, 3]) == [3.0, 1.0, -4.0], "exact"


@pytest.mark.parametrize(
    ("images", "counters", "kept"), [((1, 5), (3, 8), 8), ((5, 1), (8, 3), 8), ((5, 5), (0, 9), 0)]
)
def test_fault_35_integer_counters_come_from_largest_site(images, counters, kept):
    sent = [{**weights(), "count": torch.tensor(counter)} for counter in counters]
    assert weights_after(attach(FedAvg(), 2, weights()), sent, counts=images)["count"].item() == kept


def test_half_precision_is_averaged_in_float32():
    start = {"w": torch.zeros(1, dtype=torch.bfloat16)}
    # summed in bfloat16, 256 + 1 is 256 already
    sent = [{"w": torch.tensor([value], dtype=torch.bfloat16)} for value in (256.0, 1.0, 1.0, 2.0)]
    found = weights_after(attach(FedAvg(), 4, start), sent)["w"]
    assert (found.dtype, found.item()) == (torch.bfloat16, 65.0)


def test_buffers_alternate_without_changing_inputs():
    given_ = weights(1.0)
    strategy = FedAvg().attach(Server(["a"], 3, weights=given_))
    sent = strategy.configure(0)["a"].tensors["w"]
    memory = []
    for round in range(3):
        a_round(strategy, {"a": Message(Kind.WEIGHTS, "a", round, 3, n=1, tensors=weights(2.0))}, round)
        memory.append(strategy.global_weights["w"].data_ptr())
        if round == 0:
            assert sent[0, 0].item() == 1.0, "sent tensors are unchanged until the first reply of the next round"
    assert memory[0] == memory[2], "two buffers for any number of rounds"
    assert given_["w"][0, 0].item() == 1.0


def test_configure_sends_weights_and_purpose():
    for strategy, words in ((FedAvg(), {}), (PersonalFedAvg(), {"purpose": "distil"})):
        messages = strategy.attach(Server(["a", "b"], 3, 7, weights=weights(1.0))).configure(2)
        assert list(messages) == ["a", "b"]
        sent = messages["b"]
        assert sent == Message(Kind.WEIGHTS, "b", 2, 3, 7, tensors=sent.tensors, extra=words)
        assert torch.equal(sent.tensors["w"], weights(1.0)["w"])


def test_finish_aggregates_only_accepted_answers():
    strategy = FedAvg().attach(Server(["a"], 1, weights=weights(1.0)))
    strategy.finish(0)
    assert strategy.global_weights["w"][0, 0].item() == 1.0
    strategy.accept(0, "a", Message(Kind.WEIGHTS, "a", 0, 1, n=1, tensors=weights(5.0)))
    strategy.finish(0)
    assert strategy.global_weights["w"][0, 0].item() == 5.0
    a_round(strategy, {}, 1)
    assert strategy.global_weights["w"][0, 0].item() == 5.0


def test_failed_accept_is_not_counted(monkeypatch):
    strategy = FedAvg().attach(Server(["a", "b", "c"], 1, weights={"w": torch.zeros(1)}))
    strategy.configure(0)
    answers = {site: update(site, rounds=1, w=[value]) for site, value in {"a": 9.0, "b": 1.0, "c": 3.0}.items()}
    with monkeypatch.context() as patch:
        patch.setattr(torch, "_foreach_copy_", lambda *_: (_ for _ in ()).throw(MemoryError))
        with pytest.raises(MemoryError):
            strategy.accept(0, "a", answers["a"])
    strategy.accept(0, "b", answers["b"])
    strategy.accept(0, "c", answers["c"])
    strategy.finish(0)
    assert strategy.global_weights["w"].item() == 2.0
