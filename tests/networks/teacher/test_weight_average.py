from __future__ import annotations

import torch
from torch import nn

from samfed_monai.teacher.training import WeightAverage


def test_it_starts_quickly_and_slows_down():
    average = WeightAverage({"x": torch.zeros(1)}, decay=0.5)
    average.update({"x": torch.ones(1)})  # decay 1 / 10
    torch.testing.assert_close(average.tensors["x"], torch.tensor([0.9]))
    average.step = 100
    average.update({"x": torch.ones(1)})  # decay 0.5
    torch.testing.assert_close(average.tensors["x"], torch.tensor([0.95]))


def test_it_stands_in_and_gives_back():
    module = nn.Linear(1, 1, bias=False)
    nn.init.ones_(module.weight)
    average = WeightAverage({"weight": torch.full((1, 1), 5.0)})
    with average.applied(module):
        assert module.weight.item() == 5
    assert module.weight.item() == 1
