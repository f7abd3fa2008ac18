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
"""Seconds after which nothing is repeated: one pass of a large SAM takes longer and is sufficient."""


def cost_of(network: nn.Module, size: int, *, infer: Callable[[Tensor], Any] | None = None) -> dict[str, float]:
    """Measures parameters, time and memory for one image, on one thread of the CPU or on the network's accelerator.

    Memory is counted from tensors, not from the process, whose size depends on libraries, the allocator and earlier
    work; two runs give the same number. On CUDA it is the allocator's peak, which includes buffers of kernels.

    Args:
        network: the network, which runs in eval mode on its device; its mode is restored afterwards.
        size: side of the image in pixels; the batch is (1, 3, size, size) float in [0, 1].
        infer: function that runs it; ``None`` calls the network itself.

    Returns:
        ``parameters`` (count), ``milliseconds`` (median of five passes after a warm-up; of fewer if the total exceeds
        one second, or of the warm-up alone) and ``memory_bytes`` (parameters and buffers, plus the peak of other
        tensors during one pass: the image and results of operations; buffers of kernels only on CUDA).
    """
    run = infer or network
    parameters = list(network.parameters())
    device = parameters[0].device if parameters else torch.device("cpu")
    image = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)
    static = [*parameters, *network.buffers()]
    seconds: list[float] = []
    with eval_mode(network), set_torch_threads(1):
        for repeat in range(1 + REPEATS):
            started = time.perf_counter()
            if repeat:
                run(image)
            else:  # memory is measured in the warm-up pass
                transient = _transient_bytes(lambda: run(image), [*static, image], device)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - started)
            if sum(seconds) > ENOUGH:
                break
    return {
        "parameters": sum(parameter.numel() for parameter in parameters),
        "milliseconds": 1000 * statistics.median(seconds[1:] or seconds),
        "memory_bytes": _bytes([*static, image]) + transient,
    }


def _bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages of these tensors, each counted once."""
    return sum({id(storage): storage.nbytes() for storage in (tensor.untyped_storage() for tensor in tensors)}.values())


def _transient_bytes(run: Callable[[], Any], static: Iterable[Tensor], device: torch.device) -> int:
    """Peak number of bytes during a call, beyond the tensors that existed before."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    with _LiveStorages(static) as live:
        run()
    return live.peak


class _LiveStorages(TorchFunctionMode):
    """Counts the live storages of operations' results, except those of ``excluded``."""

    def __init__(self, excluded: Iterable[Tensor]) -> None:
        super().__init__()
        self.peak = self._live_bytes = 0
        # kept alive, so that no new storage gets their ids
        self._excluded = [tensor.untyped_storage() for tensor in excluded]
        self._counted = {id(storage) for storage in self._excluded}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if id(storage) in self._counted:
            return
        self._counted.add(id(storage))
        self._live_bytes += storage.nbytes()
        self.peak = max(self.peak, self._live_bytes)
        weakref.finalize(storage, self._release, id(storage), storage.nbytes()).atexit = False

    def _release(self, storage_id: int, size: int) -> None:
        self._counted.discard(storage_id)
        self._live_bytes -= size
