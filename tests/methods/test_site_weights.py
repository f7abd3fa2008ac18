"""Site weights that follow the sites' numbers: the weighted mean, limits and stored state, all by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from samfed_monai.methods.site_weights import LearnedWeights
from samfed_monai.protocol import Message, Server
from samfed_monai.protocol.guard import UpdateGuard
from samfed_monai.protocol.message import MessageRefused
from tests.methods.rounds import update

SERVER = Server(["a", "b", "c"], 5, 7, weights={"w": torch.zeros(1)})


class GivenWeights(LearnedWeights):
    """Moves to the weights that it is given, and records its calls."""

    def __init__(self, to: list[float] | None = None, **options: Any) -> None:
        super().__init__(**{"number": "gap", "equal_start": False, **options})
        self.to, self.calls = to, []

    def next_weights(self, round, weights, numbers):
        self.calls.append((round, weights, numbers))
        return None if self.to is None else torch.tensor(self.to, dtype=torch.float64)


def reply(site: str, value: float, number: float, n: int) -> Message:
    return update(site, rounds=5, images=n, metrics={"term_gap": number}, w=[value])


def one_round(strategy: GivenWeights, *answers: Message, round: int = 0) -> float:
    strategy.configure(round)
    for answer in answers:
        strategy.accept(round, answer.site, answer)  # without the guard's limit of steps
    strategy.finish(round)
    return strategy.global_weights["w"].item()


def test_first_round_uses_image_counts_and_imputed_numbers():
    strategy = GivenWeights().attach(SERVER)
    assert one_round(strategy, reply("a", 0.0, 1.0, 1), reply("b", 8.0, 5.0, 3)) == 6.0
    [(round, weights, numbers)] = strategy.calls
    assert round == 0
    assert strategy.configure(3)["b"].round == 3
    assert weights.tolist() == [1 / 6, 3 / 6, 2 / 6]
    assert numbers.tolist() == [1.0, 5.0, 3.0]
    assert weights.dtype is numbers.dtype is torch.float64
    assert strategy.weights == {}, "nothing was moved"
    assert strategy.exchange.reads_term_means, "of which no differential privacy is promised"


def test_next_round_uses_moved_weights():
    strategy = GivenWeights([0.25, 0.75, 0.0]).attach(SERVER)
    assert one_round(strategy, reply("a", 0.0, 1.0, 1), reply("b", 8.0, 5.0, 1), reply("c", 4.0, 0.0, 2)) == 4.0
    assert strategy.weights == {"a": 0.25, "b": 0.75, "c": 0.0}
    strategy.to = None
    assert one_round(strategy, reply("a", 0.0, 1.0, 9), reply("b", 8.0, 5.0, 1), round=1) == 6.0
    assert strategy.calls[1][1].tolist() == [0.25, 0.75, 0.0]
    assert strategy.weights == {"a": 0.25, "b": 0.75, "c": 0.0}, "it stays where nothing moves it"


def test_zero_weight_site_counts_with_minimum_weight():
    strategy = GivenWeights([0.5, 0.5, 0.0]).attach(SERVER)
    one_round(strategy, *(reply(site, 0.0, 1.0, 1) for site in "abc"))
    assert one_round(strategy, reply("c", 3.0, 1.0, 1), round=1) == 3.0
    # of 2^39 + 1 parts one
    found = one_round(strategy, reply("a", 0.0, 1.0, 1), reply("c", 2.0**39 + 1, 1.0, 1), round=2)
    assert found == pytest.approx(1.0, rel=1e-6)


def test_equal_start_ignores_image_counts():
    strategy = GivenWeights(equal_start=True).attach(SERVER)
    assert strategy.weights == {"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}
    assert one_round(strategy, reply("a", 0.0, 1.0, 1), reply("b", 8.0, 5.0, 10**6)) == 4.0
    assert strategy.calls[0][1].tolist() == [1 / 3, 1 / 3, 1 / 3]
    start = {"w": torch.zeros(1), "count": torch.tensor(0)}
    strategy = GivenWeights(equal_start=True).attach(Server(["a", "b"], 5, weights=start))
    strategy.configure(0)
    for site, count in (("b", 2), ("a", 1)):
        strategy.accept(0, site, replace(reply(site, 0.0, 1.0, 1), tensors={**start, "count": torch.tensor(count)}))
    strategy.finish(0)
    assert strategy.global_weights["count"].item() == 1


def test_site_without_number_is_refused():
    strategy = GivenWeights().attach(SERVER)
    silent = update("a", rounds=5, metrics={"term_other": 1.0}, w=[1.0])
    strategy.configure(0)
    text = (
        "message -> metrics -> term_gap: expected the mean of the term 'gap', which decides this site's weight, "
        "found nothing; set strategy -> number to an enabled term of the bundle"
    )
    with pytest.raises(MessageRefused) as caught:
        strategy.accept(0, "a", silent)
    assert str(caught.value.problems[0]) == text
    strategy.finish(0)
    assert strategy.calls == []
    assert strategy.global_weights["w"].item() == 0.0


@pytest.mark.parametrize("to", [None, [0.25, 0.75, 0.0]])
def test_state_is_stored_and_reset_on_attach(to):
    strategy = GivenWeights(to).attach(SERVER)
    assert strategy.state_dict() == {}
    one_round(strategy, reply("a", 0.0, 1.0, 1), reply("b", 8.0, 5.0, 3))
    stored = {name: (each.tolist(), each.dtype) for name, each in strategy.state_dict().items()}
    weights = {} if to is None else {"site_weights": (to, torch.float64)}
    assert stored == {"site_images": ([1, 3, 0], torch.int64), **weights}
    assert strategy.attach(SERVER) is strategy
    assert (strategy.weights, strategy.state_dict()) == ({}, {})


def test_state_of_other_site_count_is_rejected():
    strategy = GivenWeights().attach(SERVER)
    for state in ({"site_images": torch.tensor([1, 2])}, {"site_weights": torch.tensor([0.5, 0.5])}):
        with pytest.raises(ValueError, match=r"zip\(\) argument 2 is shorter"):
            strategy.load_state_dict({"w": torch.zeros(1)}, state)
    strategy.to = [0.5, 0.5]
    with pytest.raises(ValueError, match=r"zip\(\) argument 2 is shorter"):
        one_round(strategy, reply("a", 0.0, 1.0, 1))


@pytest.mark.parametrize(
    ("share", "counts"),
    [(None, [1.0, 0.0, 0.0]), (0.5, [0.5, 0.25, 0.25]), (0.4, [0.4, 0.3, 0.3]), (0.1, [1 / 3, 1 / 3, 1 / 3])],
)
def test_largest_share_caps_learned_weights(share, counts, caplog):
    guard = UpdateGuard(largest_share=share)
    strategy = GivenWeights([1.0, 0.0, 0.0], equal_start=True).attach(replace(SERVER, guard=guard))
    with caplog.at_level("INFO"):
        one_round(strategy, *(reply(site, 0.0, 1.0, 1) for site in "abc"))
    assert list(strategy.weights.values()) == pytest.approx(counts, abs=1e-12)
    message = "a has a learned weight of 1, limited to 0.5 in the mean (job#update_guard#largest_share)"
    assert (message in caplog.messages) == (share == 0.5)
    # a alone has other weights than the model: what is left of them is a's part of the mean
    answers = [reply("a", 4.0, 1.0, 1), reply("b", 0.0, 1.0, 1), reply("c", 0.0, 1.0, 1)]
    assert one_round(strategy, *answers, round=1) == pytest.approx(4 * counts[0], rel=1e-6)
    assert strategy.calls[1][1].tolist() == list(strategy.weights.values()), "it continues from the limited weights"


def test_unreached_cap_does_not_change_result():
    weights, found = [0.7, 0.1, 0.2], []
    for guard in (None, UpdateGuard(), UpdateGuard(largest_share=0.7)):
        strategy = GivenWeights(weights).attach(replace(SERVER, guard=guard))
        for round in (0, 1):
            one_round(strategy, *(reply(site, ord(site) / 7, 1.0, 3) for site in "abc"), round=round)
        found.append((strategy.global_weights["w"].item(), list(strategy.weights.values())))
    assert found[0] == found[1] == found[2]
    assert found[0][1] == weights
