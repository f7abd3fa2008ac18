"""What one image costs a network on this machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

REPEATS = 5
ENOUGH = 1.0
"""Seconds after which nothing is repeated: of a large SAM one pass takes longer, and tells enough."""


@torch.no_grad()
def cost_of(network: nn.Module, size: int, *, infer: Callable[[Tensor], Any] | None = None) -> dict[str, float]:
    """Parameters, and the time of one image by itself on one thread of the CPU, or on the network's accelerator.

    Args:
        network: counted, and run in eval mode; on the device where it is. Its mode is as before afterwards.
        size: side of the image in pixels; the batch is (1, 3, size, size) float in [0, 1].
        infer: runs it; ``None`` calls the network itself.

    Returns:
        ``parameters`` (count) and ``milliseconds`` (the median of five after one that warms up; of fewer, down to that
        one, where they take more than a second together).
    """
    run = infer or network
    parameters = list(network.parameters())
    device = parameters[0].device if parameters else torch.device("cpu")
    image = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)
    taken, training = [], network.training
    network.eval()
    with _one_thread():
        for _ in range(1 + REPEATS):
            started = time.perf_counter()
            run(image)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            taken.append(time.perf_counter() - started)
            if sum(taken) > ENOUGH:
                break
    network.train(training)
    return {
        "parameters": sum(parameter.numel() for parameter in parameters),
        "milliseconds": 1000 * statistics.median(taken[1:] or taken),
    }


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
