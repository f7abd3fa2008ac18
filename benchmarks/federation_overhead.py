"""The share of a round that is neither training nor evaluation: controller, messages, aggregation, state, run folder.

Four sites train the bundle's network on synthetic images, without SAM. Time in MONAI's trainers and evaluators is
subtracted from the time of the rounds. The rest is overhead, at the server and at the sites.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import monai.engines
from common import BUNDLE, Figure, record

from samfed_monai.data import render_synthetic
from samfed_monai.federation import FederatedJob, RoundController


class Clock:
    """Measures the wall-clock seconds of MONAI's engines, and of the rounds."""

    def __init__(self) -> None:
        self.inside = self.rounds = 0.0
        self._wrap(monai.engines.SupervisedTrainer, "run", self._engine)
        self._wrap(monai.engines.SupervisedEvaluator, "run", self._engine)
        self._wrap(RoundController, "_round", self._round)

    def _engine(self, seconds: float, inside: float) -> None:
        self.inside = inside + seconds

    def _round(self, seconds: float, inside: float) -> None:
        self.rounds += seconds
        self.engines = self.inside  # excludes the final evaluation, which follows the last round

    def _wrap(self, owner: type, method: str, note: Callable[[float, float], None]) -> None:
        inner = getattr(owner, method)

        def outer(this: Any, *args: Any, **kwargs: Any) -> Any:
            inside, start = self.inside, time.perf_counter()
            result = inner(this, *args, **kwargs)
            note(time.perf_counter() - start, inside)
            return result

        setattr(owner, method, outer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sites", type=int, default=4)
    parser.add_argument("--images", type=int, default=160, help="unlabelled images of a site (160: HSSF's smallest)")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()

    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "images"
        counts = {"images_per_site": options.images, "public": 32, "validation": 8, "test": 4}
        render_synthetic(images, sites=options.sites, **counts).save(Path(folder) / "list.json")
        job = FederatedJob(
            bundle_root=BUNDLE,
            datalist=Path(folder) / "list.json",
            data_root=images,
            output_dir=Path(folder) / "run",
            rounds=options.rounds,
            variant="no_sam",
            warm_start_steps=0,
            train={"image_size": options.size},
        )
        results = job.run()

    share = 100 * (1 - clock.engines / clock.rounds)
    details = {"rounds": clock.rounds, "engines": clock.engines, "results_json": results["seconds"]}
    what = f"{options.sites} sites, mobile_sam_fpn, {options.images} images each, {options.size} px"
    own = 100 * results["seconds"]["controller"] / clock.rounds
    record(
        __file__,
        [
            Figure(f"{what}: everything but training and evaluation", share, bound=2.0, unit="%", details=details),
            Figure(f"{what}: `seconds.controller` of results.json", own, bound=2.0, unit="%"),
        ],
    )


if __name__ == "__main__":
    main()
