"""The cost of an image: parameters, memory, and time on one thread."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

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


def test_parameters_are_counted_and_inference_timed_on_one_thread() -> None:
    network, threads = Watched(), torch.get_num_threads()
    cost = cost_of(network, 16)
    assert cost["parameters"] == 3 * 2 * 9 + 2
    assert cost["milliseconds"] > 0
    assert network.seen == [((1, 3, 16, 16), False, 1, False)] * 6
    assert network.training
    assert torch.get_num_threads() == threads
    shapes: list[torch.Size] = []
    assert cost_of(network.eval(), 8, infer=lambda image: shapes.append(image.shape))["parameters"] == 56
    assert shapes == [(1, 3, 8, 8)] * 6, "another way to run it is timed instead"
    assert (len(network.seen), network.training) == (6, False)


class Doubled(nn.Module):
    """Two layers that hand on a map of 4 channels, of which one half is a view."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 1, bias=False), nn.Conv2d(2, 1, 1, bias=False)
        self.register_buffer("spare", torch.zeros(5))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        wide = self.first(image)
        half = wide[:, :2]
        del wide
        return self.last(half.clone())


def test_memory_is_peak_of_weights_image_and_tensors() -> None:
    pixels, weights = 8 * 8, 3 * 4 + 2 + 5
    # image 3 channels; at most a map of 4 channels and its copied half, of 2, and then their 1 channel
    assert cost_of(Doubled(), 8)["memory_bytes"] == 4 * (weights + (3 + 4 + 2 + 1) * pixels)
    alone = cost_of(nn.Identity(), 8)
    assert (alone["parameters"], alone["memory_bytes"]) == (0, 4 * 3 * pixels), "the image alone"


def test_freed_memory_and_shared_weights_are_counted_once() -> None:
    network = Watched()
    alone = cost_of(network, 8)["memory_bytes"]

    def five_times(image: torch.Tensor) -> None:
        for _ in range(5):
            network(image)

    assert cost_of(network, 8, infer=five_times)["memory_bytes"] == alone
    assert cost_of(network, 8, infer=lambda image: [network(image) for _ in range(5)])["memory_bytes"] > alone
    twice = nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), nn.Conv2d(3, 3, 1, bias=False))
    apart = cost_of(twice, 8)["memory_bytes"]
    twice[1].weight = twice[0].weight
    assert apart - cost_of(twice, 8)["memory_bytes"] == 4 * 9


@pytest.mark.parametrize(("seconds", "passes"), [(1 / 64, 6), (0.4, 3), (2.0, 1)])
def test_median_pass_is_timed_and_slow_pass_is_not_repeated(monkeypatch, seconds, passes):
    clock = itertools.count(0.0, seconds)
    monkeypatch.setattr("samfed_monai.metrics.cost.time", SimpleNamespace(perf_counter=lambda: next(clock)))
    network = Watched()
    assert cost_of(network, 8)["milliseconds"] == pytest.approx(1000 * seconds)
    assert len(network.seen) == passes
