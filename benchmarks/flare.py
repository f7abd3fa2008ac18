"""NVIDIA FLARE: our controller against FLARE's own FedAvg, the simulator against one process, memory and bytes.

``--parts`` selects from:

* ``controller``: rounds of our controller against rounds of FLARE's FedAvg. Both run in FLARE's simulator with the same
  tensors and the same work at the sites, which add a step to every number. A round lasts from one start of a site's
  work to the next. Our controller runs with one exchange per round, as FLARE's FedAvg does, and with its usual second
  exchange, which scores the new model. In our jobs, sites request tasks every 0.5 s; FLARE's FedAvg runs with the same
  interval and with FLARE's default of 2 s. From the same rounds, this part also computes the time of an exchange beyond
  the sites' work, in the simulator and in one process.
* ``memory``: peak resident memory of each process (``VmHWM``) and bytes per round, in whole runs of the bundle.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from common import Figure, record
from on_flare.measured import MemoryWatch, bytes_per_round, on_flare, site_names
from on_flare.payload import STAMPS, stamps
from on_flare.rounds import run_rounds

HERE = Path(__file__).resolve().parent
INTERVAL = "0.5"  # seconds between two requests of a site for a task, as in our jobs (flare/job.py)
WARM_UP = 2  # first rounds, which are not counted, since processes still start


def round_seconds(folder: Path) -> list[float]:
    """Seconds from each start of the first site's work to its next start."""
    began = [time for time, _ in stamps(folder, "site-1")]
    return [after - before for before, after in zip(began[WARM_UP:], began[WARM_UP + 1 :], strict=False)]


def run_package(folder: Path, options: argparse.Namespace, *, evaluate: bool) -> dict[str, Any]:
    """Runs our controller in FLARE's simulator."""
    run = on_flare(folder, options.sites, rounds=options.rounds, megabytes=options.megabytes, evaluate=evaluate)
    return {"rounds": round_seconds(folder / "stamps"), "exchanges": _beyond_work(run, folder, max)}


def run_flare_fedavg(folder: Path, options: argparse.Namespace, *interval: str) -> list[float]:
    """Runs FLARE's own FedAvg in its simulator; ``interval`` as in ``on_flare/recipe.py``."""
    (folder / "stamps").mkdir(parents=True)
    shutil.copy(HERE / "on_flare" / "plain.py", folder / "plain.py")
    words = [str(folder / "workspace"), str(options.rounds), str(options.megabytes), str(options.sites), *interval]
    environment = os.environ | {STAMPS: str(folder / "stamps"), "PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1"}
    with open(folder / "log", "w") as log:
        command = [sys.executable, str(HERE / "on_flare" / "recipe.py"), *words]
        subprocess.run(command, cwd=folder, env=environment, stdout=log, stderr=log, timeout=1200, check=False)
    return round_seconds(folder / "stamps")


def run_in_process(folder: Path, options: argparse.Namespace) -> list[float]:
    """Runs the same rounds in this process."""
    from on_flare.site import Node

    from samfed_monai.federation import LocalTransport
    from samfed_monai.federation.site import ClientAlgoSite

    (folder / "stamps").mkdir(parents=True)
    os.environ[STAMPS] = str(folder / "stamps")

    class Worker(ClientAlgoSite):
        def __init__(self, site: str) -> None:
            self.site, self.node = site, Node(site)

        def answer(self, task: Any, message: Any) -> Any:
            return self.node.answer(task, message)

        def engine(self, task: Any) -> Any:
            return None

        def state_dict(self) -> dict:
            return {}

        def finalize(self) -> None:
            return None

    transport = LocalTransport({site: Worker(site) for site in site_names(options.sites)})
    run_rounds(transport, folder / "run", rounds=options.rounds, megabytes=options.megabytes, evaluate=False)
    del os.environ[STAMPS]
    return _beyond_work(folder / "run", folder, sum)


def _beyond_work(run: Path, folder: Path, of_all: Callable[[Iterable[float]], float]) -> list[float]:
    """Seconds of each exchange less the sites' work: of the slowest site (``max``), or of all in turn (``sum``)."""
    names = [path.name for path in sorted((folder / "stamps").iterdir())]
    worked = zip(*([seconds for _, seconds in stamps(folder / "stamps", name)] for name in names), strict=False)
    exchanges = [
        json.loads(path.read_text())["seconds"]["training"] for path in sorted(run.glob("rounds/[0-9]*/round.json"))
    ]
    return [seconds - of_all(each) for seconds, each in zip(exchanges, worked, strict=False)][WARM_UP:]


def controller_and_transport(folder: Path, options: argparse.Namespace) -> list[Figure]:
    """Measures rounds, and the time of an exchange beyond the sites' work."""
    what = f"{options.sites} sites, {options.megabytes} MB of weights"
    one, two = (run_package(folder / name, options, evaluate=name == "two") for name in ("one", "two"))
    flare = run_flare_fedavg(folder / "flare", options, INTERVAL)
    flare_default = run_flare_fedavg(folder / "flare-default", options)
    in_process = run_in_process(folder / "process", options)
    if not flare:
        raise SystemExit("FLARE's own FedAvg did not run:\n" + (folder / "flare" / "log").read_text()[-2000:])
    median = statistics.median
    details = {"ours": one["rounds"], "flare": flare, "flare_default": flare_default, "with_evaluation": two["rounds"]}
    overhead = {"simulator": one["exchanges"], "one_process": in_process}
    return [
        Figure(
            f"{what}: our controller's round against FLARE's FedAvg, one exchange each, both in the simulator",
            median(one["rounds"]) / median(flare),
            bound=1.05,
            details=details,
        ),
        Figure("the same, seconds: FLARE's FedAvg", median(flare), unit="s"),
        Figure("the same, seconds: FLARE's FedAvg by default (sites ask every 2 s)", median(flare_default), unit="s"),
        Figure("the same, seconds: ours", median(one["rounds"]), unit="s"),
        Figure("ours by default, with a second exchange that scores the new model", median(two["rounds"]), unit="s"),
        Figure(
            f"{what}: time of an exchange beyond the sites' work, the simulator against one process",
            median(one["exchanges"]) / max(median(in_process), 1e-4),
            bound=10,
            at_least=True,
            details=overhead,
        ),
        Figure("the same, seconds: simulator", median(one["exchanges"]), unit="s"),
        Figure("the same, seconds: one process", median(in_process), unit="s"),
    ]


RUNS: dict[str, list[str]] = {
    "ResNet-18, FedAvg": ["--variant", "no_sam", "--network_name", "deeplabv3plus_resnet18"],
    "ResNet-34, FedAvg": ["--variant", "no_sam", "--network_name", "deeplabv3plus_resnet34"],
    "ResNet-18 and -34, predictions": [
        *("--variant", "hssf", "--public_steps", "2"),
        *("--mixed_networks", "['deeplabv3plus_resnet18','deeplabv3plus_resnet34']"),
        *("--server_network", "deeplabv3plus_resnet18"),
    ],
}


def memory(folder: Path, options: argparse.Namespace) -> list[Figure]:
    """Measures whole runs of the bundle on synthetic images, in the simulator and in one process."""
    from samfed_monai.data import render_synthetic

    images, figures = folder / "images", []
    counts = {"images_per_site": 8, "public": 8, "validation": 5, "test": 5}
    render_synthetic(images, sites=options.sites, **counts).save(folder / "list.json")
    data = ["--datalist", str(folder / "list.json"), "--data-root", str(images), "--cache-dir", str(folder / "cache")]
    small = ["--rounds", "2", "--local_steps", "2", "--batch_size", "4", "--warm_start_steps", "1"]
    for name, words in [run for run in RUNS.items() if options.runs in run[0]]:
        given = [*data, *small, "--overlays", "false", "--image_size", str(options.size), *words]
        of = f"{name}, {options.sites} sites, {options.size} px"
        for way in (["flare", "simulate"], ["federate"]):
            run = folder / f"{way[-1]} {name}"
            more = ["--threads", "1"] if way[-1] == "simulate" else []
            with MemoryWatch() as watched:
                output = _samfed([*way, "samfed_skin", *given, *more, "--output-dir", str(run)])
            if not (run / "results.json").is_file():
                raise SystemExit(f"samfed {' '.join(way)}: {name} wrote no results.json:\n{output[-2000:]}")
            figures += [Figure(f"{of}: {who}", peak, unit="MiB") for who, peak in sorted(watched.peaks.items())]
        per_round = bytes_per_round(run)
        figures += [
            Figure(f"{of}: bytes of a round {way}, all sites", count / 1e6, unit="MB")
            for way, count in per_round.items()
        ]
    return figures


def _samfed(words: list[str]) -> str:
    command = [sys.executable, "-m", "samfed_monai", *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800, check=False)
    return done.stderr


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--parts", default="controller,memory", help="parts to run, separated by commas (default: controller,memory)"
    )
    parser.add_argument("--sites", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=12, help="rounds with the payload")
    parser.add_argument("--megabytes", type=int, default=45, help="size of the payload (45: ResNet-18)")
    parser.add_argument("--size", type=int, default=128, help="pixels of the images in runs of the bundle")
    parser.add_argument("--runs", default="", help="only runs of the bundle whose name contains this text")
    parser.add_argument("--dry", action="store_true", help="print the figures, do not store them")
    options = parser.parse_args()
    parts = {"controller": controller_and_transport, "memory": memory}
    with tempfile.TemporaryDirectory() as folder:
        for name in options.parts.split(","):
            (Path(folder) / name).mkdir()
            figures = parts[name](Path(folder) / name, options)
            if options.dry:
                print(*figures, sep="\n")
            else:
                record(__file__, figures, part=name)


if __name__ == "__main__":
    main()
