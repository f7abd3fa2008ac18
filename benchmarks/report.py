"""Time of writing the report of a run of 100 rounds, as a share of the run.

Two sites train for two rounds, with fewer steps and smaller images than in any bundle, so that the run is short. The
second round is then repeated in `federation.csv` until there are 100. The time of a run of 100 rounds is estimated as
100 times that of the second round.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from common import BUNDLE, Figure, record

from samfed_monai.core.io import read_json, write_json
from samfed_monai.data import render_synthetic
from samfed_monai.federation import FederatedJob
from samfed_monai.reports import Report

REPEATS = 5


def seconds(call: Callable[[], object]) -> float:
    """Median duration of several calls, after a warm-up call that imports modules and finds fonts."""
    taken = []
    for _ in range(1 + REPEATS):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[1:])


def repeat_rounds(run: Path, rounds: int) -> None:
    """Makes a finished run of two rounds look like one of ``rounds`` rounds."""
    head, *rows = (run / "federation.csv").read_text(encoding="utf-8").splitlines()
    of_a_round = [row.partition(",")[2] for row in rows if row.startswith("1,")]
    lines = [f"{number},{row}" for number in range(rounds) for row in of_a_round]
    (run / "federation.csv").write_text("\n".join([head, *lines, ""]), encoding="utf-8")
    results = read_json(run / "results.json")
    write_json(run / "results.json", {**results, "rounds": rounds})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=12)
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        counts = {"images_per_site": 16, "public": 8, "validation": 8, "test": 8, "size": (128, 128)}
        render_synthetic(folder / "images", sites=2, **counts).save(folder / "list.json")
        job = FederatedJob(
            bundle_root=BUNDLE,
            datalist=folder / "list.json",
            data_root=folder / "images",
            output_dir=folder / "run",
            rounds=2,
            variant="no_sam",
            train={
                "image_size": options.size,
                "local_steps": options.steps,
                "network_name": "lite0_fpn",
                "encoder_weights": None,
            },
        )
        job.run()
        run = folder / "run"
        round_seconds = sum(read_json(run / "rounds" / "001" / "round.json")["seconds"].values())
        repeat_rounds(run, options.rounds)
        report = Report(run_folder=run, datalist=folder / "list.json", data_root=folder / "images")
        report_seconds = seconds(report.write)
        named = f"{options.rounds} rounds of 2 sites, {options.steps} steps at {options.size} px"
        share = 100 * report_seconds / (options.rounds * round_seconds)
        record(
            __file__,
            [
                Figure(f"{named}: the report as a share of the run", share, 1.0, unit="%"),
                Figure(f"{named}: the report", report_seconds, unit="s"),
                Figure(f"{named}: a round", round_seconds, unit="s"),
            ],
        )


if __name__ == "__main__":
    main()
