"""Parameters, time and memory of a network for one image on this machine."""

from __future__ import annotations

import statistics
import time
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from monai.networks.utils import eval_mode
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.benchmark.utils.common import set_torch_threads

REPEATS = 5
ENOUGH = 1.0
"""Seconds after which nothing is repeated: of a large SAM one pass takes longer, and tells enough."""


def cost_of(network: nn.Module, size: int, *, infer: Callable[[Tensor], Any] | None = None) -> dict[str, float]:
    """Parameters, time and memory of one image by itself on one thread of the CPU, or on the network's accelerator.

    The memory is counted, not watched: what a process holds beside it (libraries, what the allocator keeps) depends on
    all that it did before. Two runs find the same bytes. On CUDA the allocator's own peak is asked, which has the
    kernels' buffers, too.

    Args:
        network: counted, and run in eval mode; on the device where it is. Its mode is as before afterwards.
        size: side of the image in pixels; the batch is (1, 3, size, size) float in [0, 1].
        infer: runs it; ``None`` calls the network itself.

    Returns:
        ``parameters`` (count) and ``milliseconds`` (the median of five after one that warms up; of fewer, down to that
        one, where they take more than a second together) and ``memory_bytes`` (parameters and buffers, and the most
        bytes of further tensors that lived at one time of one pass: the image and what operations return. What a
        kernel takes for itself while it runs is in it on CUDA only).
    """
    run = infer or network
    parameters = list(network.parameters())
    device = parameters[0].device if parameters else torch.device("cpu")
    image = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)
    held = [*parameters, *network.buffers()]
    taken: list[float] = []
    with eval_mode(network), set_torch_threads(1):
        for repeat in range(1 + REPEATS):
            started = time.perf_counter()
            if repeat:
                run(image)
            else:  # the pass that warms up, so that nothing is run for it alone
                passing = _passing_bytes(lambda: run(image), [*held, image], device)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            taken.append(time.perf_counter() - started)
            if sum(taken) > ENOUGH:
                break
    return {
        "parameters": sum(parameter.numel() for parameter in parameters),
        "milliseconds": 1000 * statistics.median(taken[1:] or taken),
        "memory_bytes": _bytes([*held, image]) + passing,
    }


def _bytes(tensors: Iterable[Tensor]) -> int:
    """Of the storages of these tensors, each counted once."""
    return sum({id(storage): storage.nbytes() for storage in (one.untyped_storage() for one in tensors)}.values())


def _passing_bytes(run: Callable[[], Any], held: Iterable[Tensor], device: torch.device) -> int:
    """The most bytes that a call holds at one time beside the tensors that were there before."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    with _LiveStorages(held) as live:
        run()
    return live.peak


class _LiveStorages(TorchFunctionMode):
    """Counts the storages of what operations return for as long as they live; those of ``held`` are not counted."""

    def __init__(self, held: Iterable[Tensor]) -> None:
        super().__init__()
        self.peak = self._now = 0
        self._held = [one.untyped_storage() for one in held]  # alive, so that no other storage takes their places
        self._known = {id(storage) for storage in self._held}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returned = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(returned):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return returned

    def _count(self, storage: torch.UntypedStorage) -> None:
        if id(storage) in self._known:
            return
        self._known.add(id(storage))
        self._now += storage.nbytes()
        self.peak = max(self.peak, self._now)
        weakref.finalize(storage, self._gone, id(storage), storage.nbytes()).atexit = False

    def _gone(self, which: int, size: int) -> None:
        self._known.discard(which)
        self._now -= size
