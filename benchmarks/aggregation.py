"""FedAvg over 4 models of 24 M parameters: time against an in-place torch sum, and peak memory in models."""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path

import torch
from common import Figure, record, side_by_side

from samfed_monai.methods.fedavg import FedAvg
from samfed_monai.protocol import Kind, Message, Server

TENSORS, WIDTH = 48, 500_000  # 24 M parameters; each tensor has about the size of a convolution's weight


def model(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {f"layer{i}.weight": torch.rand(WIDTH, generator=generator) for i in range(TENSORS)}


def messages_of(updates: list[dict[str, torch.Tensor]], counts: list[int]) -> dict[str, Message]:
    return {
        f"site-{i}": Message(Kind.WEIGHTS, f"site-{i}", round=0, rounds=1, n=n, tensors=update)
        for i, (update, n) in enumerate(zip(updates, counts, strict=True))
    }


def bare_sum(updates: list[dict[str, torch.Tensor]], counts: list[int], total: dict[str, torch.Tensor]) -> None:
    shares = [n / sum(counts) for n in counts]
    for name, buffer in total.items():
        torch.mul(updates[0][name], shares[0], out=buffer)
        for update, share in zip(updates[1:], shares[1:], strict=True):
            buffer.add_(update[name], alpha=share)


def resident(peak: bool) -> int:
    """Resident memory of this process in bytes: current, or its peak."""
    status = Path("/proc/self/status")
    if not status.is_file():  # not Linux: only the peak is available, in bytes on macOS
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    field = "VmHWM:" if peak else "VmRSS:"
    line = next(line for line in status.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def memory(sites: int) -> dict[str, float]:
    """Peak memory of aggregation beyond its input updates, in models; must run in a separate process."""
    distinct = [model(seed) for seed in range(4)]
    updates = [distinct[i % 4] for i in range(sites)]
    FedAvg().attach(Server(["a"], 1, weights={"warm": torch.zeros(8)})).aggregate(
        0, messages_of([{"warm": torch.ones(8)}], [1])
    )
    before = resident(peak=False)
    strategy = FedAvg().attach(Server([f"site-{i}" for i in range(sites)], 3, weights=updates[0]))
    for round_ in range(3):
        strategy.configure(round_)
        strategy.aggregate(round_, messages_of(updates, [10] * sites))
    return {"sites": sites, "models": (resident(peak=True) - before) / (4 * TENSORS * WIDTH)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        print(json.dumps(memory(options.memory_of)))
        return

    counts = [160, 320, 640, 955]
    updates = [model(seed) for seed in range(4)]
    messages, total = messages_of(updates, counts), model(9)
    strategy = FedAvg().attach(Server(sorted(messages), 1, weights=updates[0]))

    def aggregate() -> None:
        strategy.configure(0)
        strategy.aggregate(0, messages)

    def check_and_aggregate() -> None:
        for site, message in messages.items():
            message.check(up=True, like=strategy.global_weights, site=site, round=0)
        aggregate()

    times = side_by_side(lambda: bare_sum(updates, counts, total), aggregate, repeats=options.repeats)
    worst = max(float((strategy.global_weights[name] - total[name]).abs().max()) for name in total)
    if worst > 1e-6:  # values are in [0, 1): a few float32 rounding errors
        sys.exit(f"FedAvg and the in-place sum differ by {worst}, so their times cannot be compared")
    checked = side_by_side(lambda: bare_sum(updates, counts, total), check_and_aggregate, repeats=options.repeats)
    peaks = []
    for sites in (4, 16):
        command = [sys.executable, __file__, "--memory-of", str(sites)]
        peaks.append(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    record(
        __file__,
        [
            Figure("FedAvg, 4 x 24 M parameters, against an in-place sum", times["ratio"], bound=2.0, details=times),
            Figure(
                "the same with the check of every message (names, shapes, finiteness)",
                checked["ratio"],
                details=checked,
            ),
            *(
                # 2 % for the interpreter's own allocations
                Figure(
                    f"peak memory of aggregation, {peak['sites']} sites",
                    peak["models"],
                    bound=2.04,
                    unit="models",
                    details=peak,
                )
                for peak in peaks
            ),
        ],
    )


if __name__ == "__main__":
    main()
