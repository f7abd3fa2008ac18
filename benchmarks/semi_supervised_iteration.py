"""A whole semi-supervised iteration (labelled, weak, strong, global guide, EMA) against only the supervised step."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from common import Figure, record, side_by_side
from training import SUPERVISED, Training, prepare


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[128, 256], help="sizes of the student's images in pixels"
    )
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=6, help="iterations per timed call")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        base = prepare(Path(folder), images=options.batch * options.steps)
        for size in options.sizes:
            base |= {"image_size": size, "batch_size": options.batch, "local_steps": options.steps}
            times = side_by_side(Training(base, SUPERVISED), Training(base), repeats=options.repeats)
            what = f"student {size} px: whole iteration against the supervised step"
            figures.append(Figure(what, times["ratio"], bound=3.2, details=times))
            lean = {"guides#ema#_disabled_": True}
            times = side_by_side(Training(base, SUPERVISED), Training(base, lean), repeats=options.repeats)
            figures.append(Figure(f"{what}, without the EMA guide", times["ratio"], bound=3.2, details=times))
    record(__file__, figures)


if __name__ == "__main__":
    main()
