"""Training steps whose waiting threads spin only briefly, as in ``samfed``, against OpenMP's default.

Each measurement runs in a separate process with one thread per processor, and the two settings alternate. They are
measured on an idle machine and next to one busy process per processor. Times are wall-clock seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from common import STEP, Figure, in_new_process, median_and_quartiles, record, training_step

UNSET = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS")


def measure(size: int, steps: int, briefly: bool) -> dict[str, float]:
    from samfed_monai.core.process_setup import limit_of_spins

    if briefly:
        os.environ.update(limit_of_spins())  # before torch is imported
    return {"seconds": training_step(size, steps)}


@contextmanager
def busy_processes(number: int) -> Iterator[None]:
    """Runs ``number`` processes that compute without end while its block runs."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)]
    try:
        yield
    finally:
        for process in processes:
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
    for where, number in (("alone", 0), (f"next to {processors} busy processes", processors)):
        ratios = []
        with busy_processes(number):
            for _ in range(options.repeats):
                default, brief = (
                    in_new_process(__file__, options.size, options.steps, briefly, environment=environment)["seconds"]
                    for briefly in (0, 1)
                )
                ratios.append(default / brief)
        what = f"{STEP.format(size=options.size)}, {processors} threads, {where}: OpenMP's default against brief spins"
        found = median_and_quartiles(ratios)
        figures.append(Figure(what, found["ratio"], details=found))
    record(__file__, figures)


if __name__ == "__main__":
    main()
