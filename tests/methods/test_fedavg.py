"""Weighted averaging: exact where arithmetic is, safe where clients are not; and its moving average over rounds."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from samfed_monai.methods.fedavg import FedAvg, PersonalFedAvg
from samfed_monai.protocol import Kind, Message, Server, UpdateGuard
from tests.federation.toys import weights

VALUES = st.floats(-100, 100, width=32)
UPDATES = st.lists(st.tuples(st.integers(1, 1000), st.lists(VALUES, min_size=3, max_size=3)), min_size=1, max_size=6)


def average(updates, *, start=None, guard=None) -> dict[str, torch.Tensor]:
    names = [f"s{index}" for index in range(len(updates))]
    strategy = FedAvg()
    strategy.attach(Server(names, 1, weights=start or {"w": torch.zeros(3)}, guard=guard))
    strategy.configure(0)
    tensors = [
        values if isinstance(values, dict) else {"w": torch.tensor(values, dtype=torch.float32)}
        for _, values in updates
    ]
    messages = {
        name: Message(Kind.WEIGHTS, name, 0, 1, n=n, tensors=content)
        for name, (n, _), content in zip(names, updates, tensors, strict=True)
    }
    strategy.aggregate(0, messages)
    return strategy.global_weights


def test_weighted_mean_is_exact_on_small_numbers():
    assert average([(1, [0.0, 4.0, 8.0]), (3, [4.0, 0.0, -8.0])])["w"].tolist() == [3.0, 1.0, -4.0]


@settings(max_examples=60, deadline=None)
@given(st.lists(VALUES, min_size=3, max_size=3), st.lists(st.integers(1, 10**6), min_size=1, max_size=8))
def test_equal_weights_stay_equal_to_the_last_bit(values, counts):
    assert average([(n, values) for n in counts])["w"].tolist() == values


@settings(max_examples=60, deadline=None)
@given(UPDATES, st.randoms())
def test_order_does_not_matter_beyond_rounding(updates, random):
    shuffled = list(updates)
    random.shuffle(shuffled)
    # each of at most 6 steps rounds values of magnitude <= 100 in float32 (6e-8): 6 * 100 * 1.2e-7 < 1e-4
    torch.testing.assert_close(average(updates), average(shuffled), atol=1e-4, rtol=0)


@settings(max_examples=60, deadline=None)
@given(UPDATES)
def test_it_is_the_weighted_mean_and_stays_between_the_extremes(updates):
    mean = average(updates)["w"].double()
    values = torch.tensor([values for _, values in updates], dtype=torch.float64)
    counts = torch.tensor([n for n, _ in updates], dtype=torch.float64)
    torch.testing.assert_close(mean, (counts[:, None] * values).sum(0) / counts.sum(), atol=1e-4, rtol=0)
    assert bool((mean >= values.min(0).values - 1e-4).all())
    assert bool((mean <= values.max(0).values + 1e-4).all())


def test_fault_35_integer_counters_are_taken_from_the_largest_site_and_never_averaged():
    updates = [(1, {**weights(), "count": torch.tensor(3)}), (5, {**weights(), "count": torch.tensor(8)})]
    start = weights()
    assert average(updates, start=start)["count"].item() == 8
    assert average(updates[::-1], start=start)["count"].item() == 8
    assert average([(5, weights()), (5, {**weights(), "count": torch.tensor(9)})], start=start)["count"].item() == 0


def test_half_precision_is_averaged_in_float32():
    start = {"w": torch.zeros(1, dtype=torch.bfloat16)}
    # summed in bfloat16, 256 + 1 is 256 already
    updates = [(1, {"w": torch.tensor([value], dtype=torch.bfloat16)}) for value in (256.0, 1.0, 1.0, 2.0)]
    result = average(updates, start=start)["w"]
    assert result.dtype == torch.bfloat16
    assert result.item() == 65.0


def test_buffers_change_places_and_messages_of_the_running_round_stay_as_they_are():
    strategy = FedAvg().attach(Server(["a"], 3, weights=weights(1.0)))
    sent = strategy.configure(0)["a"].tensors["w"]
    strategy.aggregate(0, {"a": Message(Kind.WEIGHTS, "a", 0, 3, n=1, tensors=weights(2.0))})
    assert sent[0, 0].item() == 1.0
    first = strategy.global_weights["w"].data_ptr()
    for round in (1, 2):
        strategy.configure(round)
        strategy.aggregate(round, {"a": Message(Kind.WEIGHTS, "a", round, 3, n=1, tensors=weights(2.0))})
    assert strategy.global_weights["w"].data_ptr() == first, "two buffers, whatever the number of rounds"


def test_the_given_weights_are_not_changed():
    start = weights(1.0)
    average([(1, weights(5.0))] * 2, start=start)
    assert start["w"][0, 0].item() == 1.0


def test_each_site_is_sent_the_weights_and_is_told_to_learn_from_them_where_it_keeps_a_network():
    for strategy, words in ((FedAvg(), {}), (PersonalFedAvg(), {"purpose": "distil"})):
        messages = strategy.attach(Server(["a", "b"], 3, 7, weights=weights(1.0))).configure(2)
        assert list(messages) == ["a", "b"]
        sent = messages["b"]
        assert sent == Message(Kind.WEIGHTS, "b", 2, 3, 7, tensors=sent.tensors, extra=words)
        assert torch.equal(sent.tensors["w"], weights(1.0)["w"])


def test_answers_are_taken_whether_or_not_a_round_was_begun():
    strategy = FedAvg().attach(Server(["a"], 1, weights=weights(1.0)))
    strategy.finish(0)
    assert strategy.global_weights["w"][0, 0].item() == 1.0
    strategy.accept(0, "a", Message(Kind.WEIGHTS, "a", 0, 1, n=1, tensors=weights(5.0)))
    strategy.finish(0)
    assert strategy.global_weights["w"][0, 0].item() == 5.0


def test_a_round_without_updates_keeps_the_weights():
    strategy = FedAvg().attach(Server(["a"], 1, weights=weights(1.0)))
    strategy.configure(0)
    strategy.aggregate(0, {})
    assert strategy.global_weights["w"][0, 0].item() == 1.0


def test_state_there_and_back():
    strategy, other = (FedAvg().attach(Server(["a"], 1, weights=weights(value))) for value in (1.0, 2.0))
    other.load_state_dict(strategy.global_weights, strategy.state_dict())
    assert torch.equal(other.global_weights["w"], strategy.global_weights["w"])


def test_going_back_to_a_round_forgets_the_answers_of_the_one_that_was_not_finished():
    strategy = FedAvg().attach(Server(["a"], 2, weights=weights(1.0)))
    strategy.configure(0)
    strategy.accept(0, "a", Message(Kind.WEIGHTS, "a", 0, 2, n=9, tensors=weights(5.0)))
    strategy.load_state_dict(weights(2.0), {})
    strategy.finish(0)
    assert torch.equal(strategy.global_weights["w"], weights(2.0)["w"])


def test_fault_39_a_huge_step_is_clipped_to_the_limit():
    start = {"w": torch.tensor([3.0, 4.0, 0.0])}  # norm 5
    update = {"w": torch.tensor([3.0, 4.0, 1e6])}
    result = average([(1, update)], start=start, guard=UpdateGuard(limit=2.0, action="clip"))["w"]
    assert result.tolist() == pytest.approx([3.0, 4.0, 10.0], rel=1e-6)


def test_an_answer_whose_intake_fails_does_not_count(monkeypatch):
    strategy = FedAvg().attach(Server(["a", "b", "c"], 1, weights={"w": torch.zeros(1)}))
    strategy.configure(0)
    answers = {
        site: Message(Kind.WEIGHTS, site, 0, 1, n=1, tensors={"w": torch.tensor([value])})
        for site, value in {"a": 9.0, "b": 1.0, "c": 3.0}.items()
    }
    with monkeypatch.context() as patch:
        patch.setattr(torch, "_foreach_copy_", lambda *_: (_ for _ in ()).throw(MemoryError))
        with pytest.raises(MemoryError):
            strategy.accept(0, "a", answers["a"])
    strategy.accept(0, "b", answers["b"])
    strategy.accept(0, "c", answers["c"])
    strategy.finish(0)
    assert strategy.global_weights["w"].item() == 2.0
