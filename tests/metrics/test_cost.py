"""What an image costs: counted, and timed on one thread."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from samfed_monai.metrics import cost_of


class Watched(nn.Module):
    """One convolution that remembers how it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 3, padding=1)
        self.seen: list[tuple[tuple[int, ...], bool, int, bool]] = []

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.seen.append((tuple(image.shape), self.training, torch.get_num_threads(), torch.is_grad_enabled()))
        return self.conv(image)


def test_parameters_are_counted_and_one_image_is_timed_in_evaluation_on_one_thread() -> None:
    network, threads = Watched(), torch.get_num_threads()
    cost = cost_of(network, 16)
    assert cost["parameters"] == 3 * 2 * 9 + 2
    assert cost["milliseconds"] > 0
    assert network.seen == [((1, 3, 16, 16), False, 1, False)] * 6
    assert network.training
    assert torch.get_num_threads() == threads


def test_another_way_to_run_it_is_timed_instead() -> None:
    network, shapes = Watched().eval(), []
    cost = cost_of(network, 8, infer=lambda image: shapes.append(image.shape))
    assert shapes == [(1, 3, 8, 8)] * 6
    assert network.seen == []
    assert cost["parameters"] == 56
    assert not network.training


def test_what_takes_long_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("samfed_monai.metrics.cost.ENOUGH", 0.0)
    network = Watched()
    assert cost_of(network, 8)["milliseconds"] > 0
    assert len(network.seen) == 1
