"""A step without the averaged student, which no term reads (variants like no_sam), against a step with it."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from common import Figure, record, side_by_side
from training import OWN_LABELS, READ_AVERAGE, Training, prepare


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[128], help="sizes of the student's images in pixels")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=6, help="iterations per timed call")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()

    import time

    import torch

    torch.set_num_threads(options.threads)
    # on a shared machine, processor seconds of one thread vary less than wall-clock seconds
    clock = time.process_time if options.threads == 1 else time.perf_counter
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        base = prepare(Path(folder), images=options.batch * options.steps)
        for size in options.sizes:
            base |= {"image_size": size, "batch_size": options.batch, "local_steps": options.steps}
            with_it, without = Training(base, {**OWN_LABELS, **READ_AVERAGE}), Training(base, OWN_LABELS)
            times = side_by_side(with_it, without, repeats=options.repeats, clock=clock)
            what = (
                f"student {size} px, no_sam: a step without the averaged student, which no term reads, against with it"
            )
            figures.append(Figure(what, times["ratio"], bound=1.0, details=times))
    record(__file__, figures)


if __name__ == "__main__":
    main()
