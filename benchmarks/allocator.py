"""Training steps in a process that keeps freed memory, as ``samfed`` does, against glibc's defaults.

Each measurement runs in a separate process, and the two settings alternate. Times are processor seconds; memory is the
peak resident memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import time

from common import STEP, Figure, in_new_process, median_and_quartiles, record, training_step


def measure(size: int, steps: int, kept: bool) -> dict[str, float]:
    from samfed_monai.core.process_setup import keep_freed_memory

    if kept and not keep_freed_memory():
        raise SystemExit(
            "the allocator cannot be configured: the C library is not glibc, or an environment variable sets it"
        )
    step = training_step(size, steps, time.process_time)
    return {"seconds": step, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}


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
            kept = in_new_process(__file__, size, options.steps, 1)
            pairs.append((kept, in_new_process(__file__, size, options.steps, 0)))
        compared = {
            "seconds, glibc's defaults against freed blocks kept": [b["seconds"] / a["seconds"] for a, b in pairs],
            "peak memory, freed blocks kept against glibc's defaults": [a["peak"] / b["peak"] for a, b in pairs],
        }
        for what, ratios in compared.items():
            found = median_and_quartiles(ratios)
            figures.append(Figure(f"{STEP.format(size=size)}: {what}", found["ratio"], details=found))
    record(__file__, figures)


if __name__ == "__main__":
    main()
