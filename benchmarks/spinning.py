"""Training steps whose threads spin briefly while they wait for each other, as in ``samfed``, against OpenMP's default.

Each measurement is a process of its own with a thread for every processor, one of each kind in turn, alone and beside
as many other processes that compute; a pair's ratio is of wall-clock seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from common import STEP, Figure, in_a_process, middle, record, training_step

UNSET = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS")


def measure(size: int, steps: int, briefly: bool) -> dict[str, float]:
    from samfed_monai.core.own_process import brief_spins

    if briefly:
        os.environ.update(brief_spins())  # torch is imported after it
    return {"seconds": training_step(size, steps)}


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
    parser.add_argument("--measure", nargs=3, type=int, help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, default=128, help="pixels, default: 128")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    if options.measure:
        size, steps, briefly = options.measure
        print(json.dumps(measure(size, steps, bool(briefly))))
        return
    figures, processors = [], os.cpu_count() or 1
    environment = {name: value for name, value in os.environ.items() if name not in UNSET}
    for where, number in (("alone", 0), (f"beside {processors} processes that compute", processors)):
        ratios = []
        with others(number):
            for _ in range(options.repeats):
                default, brief = (
                    in_a_process(__file__, options.size, options.steps, briefly, environment=environment)["seconds"]
                    for briefly in (0, 1)
                )
                ratios.append(default / brief)
        what = f"{STEP.format(size=options.size)}, {processors} threads, {where}: OpenMP's default against brief spins"
        found = middle(ratios)
        figures.append(Figure(what, found["ratio"], details=found))
    record(__file__, figures)


if __name__ == "__main__":
    main()
