"""Sites on one machine in parallel processes against one process: a whole run of two rounds.

Both use the same number of threads: one process with all of them, or ``--workers`` processes that share them. Runs have
no warm start and no SAM. Their time includes starting the processes and building the objects of each site. Processor
seconds are the sum over all processes; on a shared machine, wall-clock seconds include waiting for a processor.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
from itertools import count
from pathlib import Path
from statistics import median

from common import BUNDLE, Figure, record, side_by_side

from samfed_monai.data import render_synthetic
from samfed_monai.federation import FederatedJob


def processor_seconds() -> float:
    """User and system time of this process and of its child processes that have ended."""
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sites", type=int, default=4)
    parser.add_argument("--images", type=int, default=64, help="unlabelled images per site")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2, help="threads of all processes together")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()

    import torch

    torch.set_num_threads(options.threads)
    number = count()
    with tempfile.TemporaryDirectory() as folder:
        images, parts = Path(folder) / "images", {1: [], options.workers: []}
        counts = {"images_per_site": options.images, "public": 32, "validation": 16, "test": 16}
        render_synthetic(images, sites=options.sites, **counts).save(Path(folder) / "list.json")

        def run(workers: int) -> None:
            before = processor_seconds()
            job = FederatedJob(
                bundle_root=BUNDLE,
                datalist=Path(folder) / "list.json",
                data_root=images,
                output_dir=Path(folder) / f"run-{next(number)}",
                cache_dir=Path(folder) / "cache",
                rounds=options.rounds,
                variant="no_sam",
                warm_start_steps=0,
                train={"image_size": options.size},
                workers=workers,
            )
            seconds = job.run()["seconds"]
            parts[workers].append({**seconds, "processor": processor_seconds() - before})

        run(1)  # checks the images and imports modules
        parts[1].clear()
        found = side_by_side(lambda: run(1), lambda: run(options.workers), repeats=options.repeats, warm_up=0)

    what = (
        f"{options.sites} sites of {options.images} images, {options.size} px, {options.rounds} rounds: "
        f"{options.workers} processes of {options.threads // options.workers} threads against one of {options.threads}"
    )
    details = {**found, "seconds": {str(workers): seconds for workers, seconds in parts.items()}}

    def median_of(workers: int, *names: str) -> float:
        return median(sum(seconds[name] for name in names) for seconds in parts[workers])

    def ratio(*names: str) -> float:
        return median_of(options.workers, *names) / median_of(1, *names)

    record(
        __file__,
        [
            Figure(f"{what}: seconds of the whole run", found["ratio"], details=details),
            Figure("the same: seconds of training and evaluation", ratio("training", "evaluation")),
            Figure("the same: processor seconds of all processes", ratio("processor")),
            Figure("one process: seconds of the whole run", found["first"], unit="s"),
            Figure(f"{options.workers} processes: seconds of the whole run", found["second"], unit="s"),
            Figure("one process: processor seconds", median_of(1, "processor"), unit="s"),
            Figure(
                f"{options.workers} processes: processor seconds", median_of(options.workers, "processor"), unit="s"
            ),
        ],
    )


if __name__ == "__main__":
    main()
