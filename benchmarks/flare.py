"""NVIDIA FLARE: our controller against FLARE's own FedAvg, the simulator against one process, memory and bytes.

Three parts, each by its name:

* ``controller``: the same tensors, the same work at the sites (a step is added to every number) and FLARE's simulator
  on both sides. A round is the time from when one site begins its work to when it begins the next; ours is timed with
  one exchange per round, as FLARE's FedAvg has it, and as it is (a second exchange scores the new model). In our jobs
  sites ask for work every 0.5 s; FLARE's FedAvg is timed with that, and with the 2 s that FLARE has by default.
* ``transport``: what an exchange costs beyond the sites' work, in the simulator and in one process; the same rounds.
* ``memory``: highest resident memory of each process (``VmHWM``) and bytes per round of whole runs of the bundle.
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
from on_flare.measured import Watched, bytes_per_round, on_flare, site_names
from on_flare.payload import STAMPS, stamps
from on_flare.rounds import run_rounds

HERE = Path(__file__).resolve().parent
INTERVAL = "0.5"  # seconds between a site's questions for work, as in our jobs (flare/job.py)
FIRST = 2  # rounds that are not counted: processes still start


def round_seconds(folder: Path) -> list[float]:
    """Seconds from the beginning of the first site's work to its next, round by round."""
    began = [time for time, _ in stamps(folder, "site-1")]
    return [after - before for before, after in zip(began[FIRST:], began[FIRST + 1 :], strict=False)]


def ours(folder: Path, options: argparse.Namespace, *, evaluate: bool) -> dict[str, Any]:
    """Our controller in FLARE's simulator."""
    run = on_flare(folder, options.sites, rounds=options.rounds, megabytes=options.megabytes, evaluate=evaluate)
    return {"rounds": round_seconds(folder / "stamps"), "exchanges": _beyond_work(run, folder, max)}


def theirs(folder: Path, options: argparse.Namespace, *interval: str) -> list[float]:
    """FLARE's own FedAvg in its simulator; ``interval`` as in ``on_flare/recipe.py``."""
    (folder / "stamps").mkdir(parents=True)
    shutil.copy(HERE / "on_flare" / "plain.py", folder / "plain.py")
    words = [str(folder / "workspace"), str(options.rounds), str(options.megabytes), str(options.sites), *interval]
    environment = os.environ | {STAMPS: str(folder / "stamps"), "PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1"}
    with open(folder / "log", "w") as log:
        command = [sys.executable, str(HERE / "on_flare" / "recipe.py"), *words]
        subprocess.run(command, cwd=folder, env=environment, stdout=log, stderr=log, timeout=1200, check=False)
    return round_seconds(folder / "stamps")


def local(folder: Path, options: argparse.Namespace) -> list[float]:
    """The same rounds in this process."""
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

    carrier = LocalTransport({site: Worker(site) for site in site_names(options.sites)})
    run_rounds(carrier, folder / "run", rounds=options.rounds, megabytes=options.megabytes, evaluate=False)
    del os.environ[STAMPS]
    return _beyond_work(folder / "run", folder, sum)


def _beyond_work(run: Path, folder: Path, of_all: Callable[[Iterable[float]], float]) -> list[float]:
    """Seconds of each exchange beyond the sites' work: that of the slowest (``max``), or of all in turn (``sum``)."""
    names = [path.name for path in sorted((folder / "stamps").iterdir())]
    worked = zip(*([seconds for _, seconds in stamps(folder / "stamps", name)] for name in names), strict=False)
    spent = [
        json.loads(path.read_text())["seconds"]["training"] for path in sorted(run.glob("rounds/[0-9]*/round.json"))
    ]
    return [seconds - of_all(each) for seconds, each in zip(spent, worked, strict=False)][FIRST:]


def controller_and_transport(folder: Path, options: argparse.Namespace) -> list[Figure]:
    """Both parts of which the rounds' seconds are the figures."""
    what = f"{options.sites} sites, {options.megabytes} MB of weights"
    one, full = ours(folder / "ours", options, evaluate=False), ours(folder / "full", options, evaluate=True)
    flares, plain = theirs(folder / "theirs", options, INTERVAL), theirs(folder / "plain", options)
    here = local(folder / "local", options)
    if not flares:
        raise SystemExit("FLARE's own FedAvg did not run:\n" + (folder / "theirs" / "log").read_text()[-2000:])
    median = statistics.median
    details = {"ours": one["rounds"], "flare": flares, "flare_as_it_comes": plain, "with_evaluation": full["rounds"]}
    overhead = {"simulator": one["exchanges"], "one_process": here}
    least = max(median(here), 1e-4)
    return [
        Figure(
            f"{what}: our controller's round against FLARE's FedAvg, one exchange each, both in the simulator",
            median(one["rounds"]) / median(flares),
            bound=1.05,
            details=details,
        ),
        Figure("the same, seconds: FLARE's FedAvg", median(flares), unit="s"),
        Figure("the same, seconds: FLARE's FedAvg as it comes (sites ask every 2 s)", median(plain), unit="s"),
        Figure("the same, seconds: ours", median(one["rounds"]), unit="s"),
        Figure("ours as it is, with the new model's scores in a second exchange", median(full["rounds"]), unit="s"),
        Figure(
            f"{what}: what an exchange costs beyond the sites' work, the simulator against one process",
            median(one["exchanges"]) / least,
            bound=10,
            at_least=True,
            details=overhead,
        ),
        Figure("the same, seconds: simulator", median(one["exchanges"]), unit="s"),
        Figure("the same, seconds: one process", median(here), unit="s"),
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
    """Whole runs of the bundle on synthetic images, in the simulator and in one process."""
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
            with Watched() as watched:
                output = _samfed([*way, "samfed_skin", *given, *more, "--output-dir", str(run)])
            if not (run / "results.json").is_file():
                raise SystemExit(f"samfed {' '.join(way)}: {name} did not end:\n{output[-2000:]}")
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
    parser.add_argument("--parts", default="controller,memory", help="controller (with transport), memory")
    parser.add_argument("--sites", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=12, help="of the payload's runs")
    parser.add_argument("--megabytes", type=int, default=45, help="of the payload (45: ResNet-18)")
    parser.add_argument("--size", type=int, default=128, help="images of the bundle's runs, in pixels")
    parser.add_argument("--runs", default="", help="only the bundle's runs with this in their name")
    parser.add_argument("--dry", action="store_true", help="print the figures, keep those that are stored")
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
