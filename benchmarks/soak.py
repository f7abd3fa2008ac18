"""Soak test: a long run of a real server with many simulated sites that join, leave, crash and send faulty updates.

No round may be lost, and memory may not grow. After each round, the test checks which updates counted, and that one
tensor of the model is bit-equal to FedAvg's mean of those updates. Now and then the server is killed (SIGKILL) in the
middle of a round and started again. The same command resumes a stopped run. Memory is that of the server's process.

    python benchmarks/soak.py --sites 200 --rounds 500 --output-dir runs/soak
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from common import Figure, record
from simulated_sites import Behaviour, SimulatedSites, images_of, model, resident, site_names, step_of, wrong_entries

from samfed_monai.core.io import append_line
from samfed_monai.core.seeds import derive_seed
from samfed_monai.core.text import counted
from samfed_monai.federation import Progress, RoundController, RunFolder
from samfed_monai.federation.wire_transport import WireTransport
from samfed_monai.methods.fedavg import FedAvg
from samfed_monai.protocol import Kind, Message, Server, UpdateGuard
from samfed_monai.protocol.guard import ImageCounts

JOURNAL = "soak.jsonl"


class WrongRound(Exception):
    """The record or the model of a round does not match the behaviour of its sites."""


class RoundCheck:
    """Checks every stored round, and writes its time and memory to the journal.

    Args:
        folder: folder of the run.
        strategy: strategy of the server.
        behaviour: behaviour of the sites.
        start: the checked tensor before the first round of this process.
    """

    def __init__(self, folder: Path, strategy: FedAvg, behaviour: Behaviour, start: torch.Tensor) -> None:
        self.folder, self.strategy, self.behaviour = folder, strategy, behaviour
        self.before, self.started = start, time.monotonic()

    def __call__(self, records: Sequence[Mapping[str, Any]]) -> None:
        last = records[-1]
        round = last["round"]
        wrong = wrong_entries(last, self.behaviour, round)
        name = checked_tensor(self.strategy.global_weights)
        after = self.strategy.global_weights[name]
        if not torch.equal(after, self._mean(last)):
            wrong.append(f"round {round}: {name} is not the mean of the updates that counted")
        if len(records) != round + 1:
            wrong.append(f"round {round}: earlier rounds are missing")
        if wrong:
            raise WrongRound("\n".join(wrong))
        self.before = after.clone()
        now = time.monotonic()
        line = {"round": round, "process": os.getpid(), "MiB": resident(), "seconds": now - self.started}
        line["left_out"] = sum(entry["status"] != "ok" for entry in last["sites"].values())
        append_line(self.folder / JOURNAL, json.dumps(line))
        self.started = now

    def _mean(self, last: Mapping[str, Any]) -> torch.Tensor:
        sites = [site for site, entry in last["sites"].items() if entry["status"] == "ok"]
        strategy = FedAvg().attach(Server(sites, last["rounds"], weights={"w": self.before}))
        strategy.configure(last["round"])
        for site in sorted(sites):
            tensor = self.before + step_of(self.behaviour.seed, site, last["round"])
            strategy.accept(
                last["round"], site, Message(Kind.WEIGHTS, site, 0, 1, n=images_of(site), tensors={"w": tensor})
            )
        strategy.finish(last["round"])
        return strategy.global_weights["w"]


def checked_tensor(weights: Mapping[str, torch.Tensor]) -> str:
    """Name of the smallest floating-point tensor to which sites add steps."""
    floats = [name for name, t in weights.items() if t.is_floating_point() and not name.endswith("running_var")]
    return min(floats, key=lambda name: (weights[name].numel(), name))


def kill_index(seed: int, round: int, sites: int, every: int) -> int | None:
    """Index of the reply before which the server is killed in ``round``; ``None``: it is not killed."""
    drawn = derive_seed(seed, "kill", round)
    return drawn // every % sites if every and drawn % every == 0 else None


def serve(folder: Path, options: argparse.Namespace) -> None:
    """Runs the remaining rounds in this process."""
    logging.getLogger("samfed_monai").setLevel(logging.ERROR)  # there are thousands of faulty updates
    torch.set_num_threads(1)
    weights, names = model(options.network), site_names(options.sites)
    behaviour = Behaviour(options.seed, faults=options.faults, absences=options.absences)

    def before_reply(round: int, number: int) -> None:
        mark = folder / "killed" / str(round)
        if kill_index(options.seed, round, options.sites, options.kill_every) == number and not mark.exists():
            mark.parent.mkdir(exist_ok=True)
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    post = SimulatedSites(behaviour, sites=options.sites, before_reply=before_reply)
    progress = Progress(show=None if options.progress else False)
    transport = WireTransport(post, names, run="soak", patience=60.0, progress=Progress(show=False), spool=folder)
    settings = {"participants": options.sites, "network": options.network, "rounds": options.rounds}
    settings |= {"faults": options.faults, "absences": options.absences}
    with RunFolder(folder).open(settings, seeds={"seed": options.seed}) as run:
        strategy = FedAvg()
        strategy.attach(Server(names, options.rounds, options.seed, weights=weights, guard=UpdateGuard(action="skip")))
        stored = run.store.latest()
        start = run.store.weights(stored["round"]) if stored else weights
        check = RoundCheck(folder, strategy, behaviour, start[checked_tensor(start)].clone())
        RoundController(
            transport=transport,
            strategy=strategy,
            folder=run,
            rounds=options.rounds,
            seed=options.seed,
            timeout=options.timeout,
            quorum=max(2, options.sites // 4),
            splits=("validation",),
            progress=progress,
            on_round=check,
            counts=ImageCounts({name: images_of(name) for name in names}),
        ).run()


def growth(lines: Sequence[Mapping[str, Any]]) -> float:
    """Memory growth per round in MiB, fitted to all but the first three rounds of the process with the most rounds."""
    by_process: dict[int, list[Mapping[str, Any]]] = {}
    for line in lines:
        by_process.setdefault(line["process"], []).append(line)
    points = max(by_process.values(), key=len)[3:]
    if len(points) < 3:
        return float("nan")
    mean = sum(point["round"] for point in points) / len(points)
    variance = sum((point["round"] - mean) ** 2 for point in points)
    return sum((point["round"] - mean) * point["MiB"] for point in points) / variance


def soak(folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Runs the server, restarting it after each kill, until all rounds are done; returns the lines of the journal."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, __file__, "--serve", "--output-dir", str(folder)]
    for name in ("sites", "rounds", "network", "seed", "faults", "absences", "kill_every", "timeout"):
        command += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    command += [] if options.progress else ["--no-progress"]
    while (code := subprocess.run(command).returncode) == -signal.SIGKILL:
        pass
    if code:
        raise SystemExit(code)
    lines = [json.loads(line) for line in (folder / JOURNAL).read_text().splitlines()]
    done = {line["round"] for line in lines}
    # killed between storing a round and writing its line: the round still counts, since it is in rounds/
    stored = set(RunFolder(folder).store.rounds())
    if stored != set(range(options.rounds)) or len(stored - done) > len({line["process"] for line in lines}):
        raise SystemExit(f"rounds were lost: {sorted(set(range(options.rounds)) - stored)}")
    RunFolder(folder).store.records(options.rounds - 1)  # refuses a record that cannot be read
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sites", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--network", default="mobile_sam_fpn", help="a network of docs/options.md, or MB of weights")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--faults", type=float, default=0.05, help="share of faulty replies")
    parser.add_argument(
        "--absences", type=float, default=0.005, help="probability per site and round that a site becomes absent"
    )
    parser.add_argument(
        "--kill-every", type=int, default=20, help="mean number of rounds between kills of the server; 0: none"
    )
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds that a round waits for absent sites")
    parser.add_argument("--output-dir", type=Path, help="folder of the run, resumed if it exists (default: temporary)")
    parser.add_argument("--no-progress", dest="progress", action="store_false", help="show no progress bar")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.set_defaults(progress=True)
    options = parser.parse_args()
    if options.sites < 2:
        parser.error("--sites: a federation has at least 2")
    if options.serve:
        try:
            serve(options.output_dir, options)
        except WrongRound as error:
            raise SystemExit(f"{error}") from None
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.output_dir or Path(temporary)
        lines = soak(folder, options)
    left_out = sum(line["left_out"] for line in lines)
    servers = len({line["process"] for line in lines})
    size = f"{options.network} MB" if options.network.isdecimal() else options.network
    what = f"{options.sites} simulated sites of {size}, {options.rounds} rounds, {counted(servers, 'server')}"
    figures = [
        Figure(f"{what}: rounds lost or with a wrong mean", 0.0, bound=0.0, unit="rounds"),
        Figure(f"{what}: updates left out, all of faulty or absent sites", float(left_out), unit="updates"),
        Figure(f"{what}: time", sum(line["seconds"] for line in lines) / 60, unit="minutes"),
        Figure(f"{what}: peak memory after a round", max(line["MiB"] for line in lines), unit="MiB"),
        Figure(f"{what}: memory growth per round", growth(lines), bound=0.05, unit="MiB"),
    ]
    record(__file__, figures, part=f"{options.sites} sites, {options.rounds} rounds")


if __name__ == "__main__":
    main()
