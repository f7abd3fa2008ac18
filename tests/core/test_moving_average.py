"""One moving average: exact numbers, integers copied, a decay of 0 is a copy."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from samfed_monai.core.training_state import WeightAverage, move_average


def test_average_matches_hand_calculation_and_copies_integers():
    average = [torch.tensor([0.0, 8.0]), torch.tensor(3), torch.tensor([1.0], dtype=torch.float16)]
    move_average(average, [torch.tensor([4.0, 0.0]), torch.tensor(7), torch.tensor([2.0]).half()], 0.75)
    assert [tensor.tolist() for tensor in average] == [[1.0, 6.0], 7, [1.25]]
    assert average[2].dtype == torch.float16
    move_average(counts := [torch.tensor([1, 2])], [torch.tensor([3, 4])], 0.9)
    assert counts[0].tolist() == [3, 4], "no floats beside them"


@given(st.lists(st.floats(-(2.0**90), 2.0**90, width=32), min_size=1, max_size=8))
def test_decay_zero_copies_and_decay_one_keeps(values):
    new, old = torch.tensor(values), torch.linspace(-3, 5, len(values))
    copied, stayed = [old.clone()], [old.clone()]
    move_average(copied, [new], 0.0)
    move_average(stayed, [new], 1.0)
    assert torch.equal(copied[0], new)
    assert torch.equal(stayed[0], old)


def test_weight_average_decay_increases_with_steps():
    average = WeightAverage({"x": torch.zeros(1)}, decay=0.5)
    average.update({"x": torch.ones(1)})  # decay 1 / 10
    torch.testing.assert_close(average.tensors["x"], torch.tensor([0.9]))
    average.step = 100
    average.update({"x": torch.ones(1)})  # decay 0.5
    torch.testing.assert_close(average.tensors["x"], torch.tensor([0.95]))


def test_applied_average_is_reverted():
    module = nn.Linear(1, 1, bias=False)
    nn.init.ones_(module.weight)
    with WeightAverage({"weight": torch.full((1, 1), 5.0)}).applied(module):
        assert module.weight.item() == 5
    assert module.weight.item() == 1
