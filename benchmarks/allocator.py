"""Training steps of a process that keeps freed memory, as ``samfed`` does, against one with glibc's defaults.

Each measurement is a process of its own, one of each kind in turn; a pair's ratio is of the seconds that the processor
spent, memory is the highest resident size.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

from common import Figure, record


def measure(size: int, steps: int, kept: bool) -> dict[str, float]:
    import torch

    from samfed_monai.core.allocator import keep_freed_memory
    from samfed_monai.networks.catalogue import client_network

    if kept and not keep_freed_memory():
        raise SystemExit("the allocator cannot be set here: not glibc, or set by a variable of the environment")
    torch.manual_seed(0)
    network = client_network("deeplabv3plus_resnet18")
    optimizer = torch.optim.AdamW(network.parameters())
    images = torch.rand(4, 3, size, size)
    times = []
    for _ in range(steps + 2):
        start = time.process_time()
        optimizer.zero_grad()
        network(images).square().mean().backward()
        optimizer.step()
        times.append(time.process_time() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": statistics.median(times[2:]), "peak": peak}


def in_a_process(size: int, steps: int, *, kept: bool) -> dict[str, float]:
    command = [sys.executable, "-W", "ignore", __file__, "--measure", str(size), str(steps), str(int(kept))]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", nargs=3, type=int, help=argparse.SUPPRESS)
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 384])
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    if options.measure:
        size, steps, kept = options.measure
        print(json.dumps(measure(size, steps, bool(kept))))
        return
    figures = []
    for size in options.sizes:
        pairs = []
        for _ in range(options.repeats):
            ours = in_a_process(size, options.steps, kept=True)
            pairs.append((ours, in_a_process(size, options.steps, kept=False)))
        compared = {
            "seconds, glibc's defaults against freed blocks kept": [b["seconds"] / a["seconds"] for a, b in pairs],
            "peak memory, freed blocks kept against glibc's defaults": [a["peak"] / b["peak"] for a, b in pairs],
        }
        for what, ratios in compared.items():
            ratios.sort()
            quarter = len(ratios) // 4
            details = {"low": ratios[quarter], "high": ratios[-1 - quarter]}
            what = f"A step of DeepLabV3+ ResNet-18, 4 images of {size} px: {what}"
            figures.append(Figure(what, statistics.median(ratios), details=details))
    record(__file__, figures)


if __name__ == "__main__":
    main()
