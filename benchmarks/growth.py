"""How a server's memory grows with the number of sites, and how the cost of storing a round grows with their number.

Memory: two rounds of FedAvg with serialized messages and simulated sites. Sites answer in reverse order of their names.
This is the worst case for a server that adds updates in the order of names: all replies wait. If they waited in
memory, the server would hold one model per site. Writing: rounds with records of twenty sites are stored, and the
processor time of the first rounds is compared with that of the last ones.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import Figure, record
from simulated_sites import SimulatedSites, model, resident, site_names

from samfed_monai.federation import Progress, RoundController, RunFolder
from samfed_monai.federation.wire_transport import WireTransport
from samfed_monai.methods.fedavg import FedAvg
from samfed_monai.protocol import Server, UpdateGuard


def memory(sites: int, megabytes: int, folder: Path) -> dict[str, float]:
    """Peak memory of a server in two rounds, beyond its memory before them; must run in a separate process."""
    names = site_names(sites)
    strategy = FedAvg()
    strategy.attach(Server(names, 2, weights=model(str(megabytes)), guard=UpdateGuard()))
    post = SimulatedSites(sites=sites, reverse=True)
    transport = WireTransport(post, names, run="growth", progress=Progress(show=False), spool=folder)
    before = resident()
    with RunFolder(folder).open({}) as run:
        RoundController(
            transport=transport,
            strategy=strategy,
            folder=run,
            rounds=2,
            splits=("validation",),
            progress=Progress(show=False),
        ).run()
    return {"sites": sites, "MiB": resident(peak=True) - before}


def entry(site: str) -> dict[str, Any]:
    """One site's entry in a record of a round, as long as a real one."""
    scores = {"dice": 0.8, "iou": 0.7, "hd95": 4.0, "n": 20, "empty": {"both": 0, "prediction": 0, "label": 0}}
    terms = {"supervised": 0.25, "agreement": 0.125, "sam_kd": 0.0625}
    reported = {"status": "ok", "reason": None, "n": 100, "seconds": 12.5, "terms": terms, "validation": scores}
    return {**reported, "unscored": None, "up_bytes": 10**7, "down_bytes": 10**7}


def writing(rounds: int, folder: Path) -> list[float]:
    """Processor seconds of storing each of ``rounds`` rounds."""
    sites = {site: entry(site) for site in site_names(20)}
    durations = []
    with RunFolder(folder).open({}) as run:
        records = run.store.records(-1)
        for round in range(rounds):
            average = {"validation": {"dice": 0.5 + (round % 7) / 100}}
            stored = {"round": round, "rounds": rounds, "sites": sites, "average": average}
            started = time.process_time()
            run.write_round({"w": torch.zeros(1000)}, records, stored, keep_best_states=True)
            durations.append(time.process_time() - started)
    return durations


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sites", default="8,32,128", help="numbers of sites")
    parser.add_argument("--megabytes", type=int, default=8, help="size of the model")
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if options.memory_of:
            print(json.dumps(memory(options.memory_of, options.megabytes, Path(folder))))
            return
        durations = writing(options.rounds, Path(folder))
    peaks = []
    for sites in options.sites.split(","):
        command = [sys.executable, __file__, "--memory-of", sites, "--megabytes", str(options.megabytes)]
        peaks.append(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    few, many = peaks[0], peaks[-1]
    slope = (many["MiB"] - few["MiB"]) / ((many["sites"] - few["sites"]) * options.megabytes * 1e6 / 2**20)
    part = max(1, min(50, options.rounds // 4))
    first, last = (statistics.median(some) for some in (durations[1 : part + 1], durations[-part:]))
    what = f"server over messages, FedAvg of {options.megabytes} MB"
    figures = [Figure(f"{what}, {peak['sites']} sites: memory of a round", peak["MiB"], unit="MiB") for peak in peaks]
    # the bound allows for the record, the message header and the log line of a site
    figures += [
        Figure(f"{what}: models in memory per additional site", slope, bound=0.05, unit="models"),
        Figure(
            f"storing round {options.rounds} against round 2, 20 sites, processor time",
            last / first,
            bound=1.5,
            details={"first": first, "last": last},
        ),
    ]
    record(__file__, figures)


if __name__ == "__main__":
    main()
