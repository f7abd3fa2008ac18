"""The base class of robust rules: replies are kept until the round ends; small sums by hand."""

from __future__ import annotations

import pytest
import torch

from samfed_monai.methods.robust import (
    RobustAggregation,
    SiteUpdate,
    lower_median,
    sorted_values,
    squared_distance,
    weighted_mean,
)
from samfed_monai.protocol import Server
from tests.methods.rounds import update


class Sum(RobustAggregation):
    """The sum of what sites sent, weighed by their images; it remembers in which order they came."""

    def combine(self, answers):
        self.order = list(answers)
        return {"w": sum(answer.n * answer.tensors["w"] for answer in answers.values())}


def test_answers_are_combined_in_name_order_at_round_end():
    strategy = Sum().attach(Server(["a", "b", "c", "d"], 5, weights={"w": torch.tensor([0.5])}))
    assert strategy.configure(0)["d"].tensors["w"].tolist() == [0.5]
    for site, value, n in (("c", 4.0, 2), ("a", 1.0, 1), ("b", 2.0, 3)):
        strategy.accept(0, site, update(site, rounds=5, images=n, w=[value]))
        assert strategy.global_weights["w"].tolist() == [0.5]
    strategy.finish(0)
    assert strategy.order == ["a", "b", "c"]
    assert strategy.global_weights["w"].tolist() == [15.0]


def test_sorted_values_are_elementwise_and_upcast_half_precision():
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64):
        answers = [SiteUpdate(1, {"w": torch.tensor(row, dtype=dtype)}) for row in ([3, 1], [1, 2], [2, 9])]
        found = sorted_values(answers, "w")
        assert found.tolist() == [[1, 1], [2, 2], [3, 9]]
        assert found.dtype is (torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype)


def test_lower_median_is_value_of_a_site():
    counts = [SiteUpdate(1, {"n": torch.tensor(count)}) for count in (9, 2, 5, 7)]
    assert [lower_median(counts[:sites], "n").item() for sites in (4, 3, 1)] == [5, 5, 9]


def test_weighted_mean_of_tensors():
    first = torch.tensor([0.0])
    assert weighted_mean([first, torch.tensor([8.0])], [1, 3]).tolist() == [6.0]
    assert weighted_mean([first, torch.tensor([8.0]), torch.tensor([2.0])], [1, 1, 2]).tolist() == [3.0]
    halves = [torch.tensor([value], dtype=torch.bfloat16) for value in (256.0, 1.0, 1.0, 2.0)]
    found = weighted_mean(halves, [1] * 4)  # step by step in bfloat16 it is 64.5
    assert (found.dtype, found.tolist()) == (torch.float32, [65.0])
    weighted_mean([first], [1]).add_(1)
    assert first.item() == 0.0, "what comes is not changed"
    with pytest.raises(ValueError, match=r"zip\(\) argument 2 is shorter"):
        weighted_mean([first, first], [1])


def test_squared_distance_skips_integers_and_uses_float64():
    one = {"w": torch.tensor([3.0, 1e30]), "v": torch.tensor([2.0]), "n": torch.tensor(1)}
    other = {"w": torch.tensor([0.0, 1e30]), "v": torch.tensor([-2.0]), "n": torch.tensor(9)}
    assert squared_distance(one, other) == 25.0
    assert squared_distance({"w": torch.tensor([1e30])}, {"w": torch.tensor([-1e30])}) == pytest.approx(4e60, rel=1e-6)
