"""Training steps whose threads spin briefly while they wait for each other, as in ``samfed``, against OpenMP's default.

Each measurement is a process of its own with a thread for every processor, one of each kind in turn, alone and beside
as many other processes that compute; a pair's ratio is of wall-clock seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from common import Figure, record


def measure(size: int, steps: int) -> float:
    import torch

    from samfed_monai.networks.catalogue import client_network

    torch.manual_seed(0)
    network = client_network("deeplabv3plus_resnet18")
    optimizer = torch.optim.AdamW(network.parameters())
    images = torch.rand(4, 3, size, size)
    times = []
    for _ in range(steps + 2):
        start = time.perf_counter()
        optimizer.zero_grad()
        network(images).square().mean().backward()
        optimizer.step()
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:])


def in_a_process(size: int, steps: int, *, briefly: bool) -> float:
    from samfed_monai.core.openmp import spin_briefly

    before = dict(os.environ)
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS"):
        os.environ.pop(name, None)
    if briefly:
        assert spin_briefly()
    command = [sys.executable, "-W", "ignore", __file__, "--measure", str(size), str(steps)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=dict(os.environ))
    os.environ.clear()
    os.environ.update(before)
    return json.loads(done.stdout.splitlines()[-1])


@contextmanager
def others(number: int) -> Iterator[None]:
    """Other work: so many processes that compute without end."""
    working = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)]
    try:
        yield
    finally:
        for process in working:
            process.kill()
            process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", nargs=2, type=int, help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, default=128, help="pixels, default: 128")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(*options.measure)))
        return
    figures, processors = [], os.cpu_count() or 1
    for where, number in (("alone", 0), (f"beside {processors} processes that compute", processors)):
        with others(number):
            ratios = sorted(
                in_a_process(options.size, options.steps, briefly=False)
                / in_a_process(options.size, options.steps, briefly=True)
                for _ in range(options.repeats)
            )
        quarter = len(ratios) // 4
        what = f"A step of DeepLabV3+ ResNet-18, 4 images of {options.size} px, {processors} threads, {where}"
        details = {"low": ratios[quarter], "high": ratios[-1 - quarter]}
        figures.append(
            Figure(f"{what}: OpenMP's default against brief spins", statistics.median(ratios), details=details)
        )
    record(__file__, figures)


if __name__ == "__main__":
    main()
