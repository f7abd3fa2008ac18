"""A long run of a real server with many stand-in sites, which come, go, lie and crash: nothing is lost, memory is flat.

Each round is checked as it ends: whose update counted and whose did not, and, on one tensor to the bit, that the model
is FedAvg's mean of those that did. The server is killed (SIGKILL) now and then, in the middle of a round, and started
again. A stopped run goes on with the same command. Memory is that of the server's process.

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
from stand_ins import Behaviour, StandIns, honest, images_of, model, resident, site_names, step_of

from samfed_monai.core.io import append_line
from samfed_monai.core.seeds import derive_seed
from samfed_monai.core.words import counted
from samfed_monai.federation import Progress, RoundController, RunFolder
from samfed_monai.federation.wire_transport import WireTransport
from samfed_monai.methods.fedavg import FedAvg
from samfed_monai.protocol import Kind, Message, Server, UpdateGuard
from samfed_monai.protocol.guard import Counts

JOURNAL = "soak.jsonl"


class WrongRound(Exception):
    """A round is not what its sites make of it."""


class Watch:
    """Looks at every round that is stored, and notes time and memory in the journal.

    Args:
        folder: of the run.
        strategy: of the server.
        behaviour: of the sites.
        start: the watched tensor before the first round that this process runs.
    """

    def __init__(self, folder: Path, strategy: FedAvg, behaviour: Behaviour, start: torch.Tensor) -> None:
        self.folder, self.strategy, self.behaviour = folder, strategy, behaviour
        self.before, self.began = start, time.monotonic()

    def __call__(self, records: Sequence[Mapping[str, Any]]) -> None:
        last = records[-1]
        round = last["round"]
        wrong = honest(last, self.behaviour, round)
        name = watched(self.strategy.global_weights)
        after = self.strategy.global_weights[name]
        if not torch.equal(after, self._mean(last)):
            wrong.append(f"round {round}: {name} is not the mean of the updates that counted")
        if len(records) != round + 1:
            wrong.append(f"round {round}: rounds are missing before it")
        if wrong:
            raise WrongRound("\n".join(wrong))
        self.before = after.clone()
        now = time.monotonic()
        line = {"round": round, "process": os.getpid(), "MiB": resident(), "seconds": now - self.began}
        line["left_out"] = sum(entry["status"] != "ok" for entry in last["sites"].values())
        append_line(self.folder / JOURNAL, json.dumps(line))
        self.began = now

    def _mean(self, last: Mapping[str, Any]) -> torch.Tensor:
        sites = [site for site, entry in last["sites"].items() if entry["status"] == "ok"]
        again = FedAvg().attach(Server(sites, last["rounds"], weights={"w": self.before}))
        again.configure(last["round"])
        for site in sorted(sites):
            tensor = self.before + step_of(self.behaviour.seed, site, last["round"])
            again.accept(
                last["round"], site, Message(Kind.WEIGHTS, site, 0, 1, n=images_of(site), tensors={"w": tensor})
            )
        again.finish(last["round"])
        return again.global_weights["w"]


def watched(weights: Mapping[str, torch.Tensor]) -> str:
    """The smallest tensor of floating-point weights that steps are added to."""
    floats = [name for name, t in weights.items() if t.is_floating_point() and not name.endswith("running_var")]
    return min(floats, key=lambda name: (weights[name].numel(), name))


def dies_at(seed: int, round: int, sites: int, every: int) -> int | None:
    """The answer in ``round`` at which the server is killed; ``None`` in most rounds."""
    drawn = derive_seed(seed, "kill", round)
    return drawn // every % sites if every and drawn % every == 0 else None


def serve(folder: Path, options: argparse.Namespace) -> None:
    """Runs what is left of the rounds in this process."""
    logging.getLogger("samfed_monai").setLevel(logging.ERROR)  # sites lie by the thousand
    torch.set_num_threads(1)
    weights, names = model(options.network), site_names(options.sites)
    behaviour = Behaviour(options.seed, lies=options.lies, absences=options.absences)

    def at_answer(round: int, number: int) -> None:
        mark = folder / "killed" / str(round)
        if dies_at(options.seed, round, options.sites, options.kill_every) == number and not mark.exists():
            mark.parent.mkdir(exist_ok=True)
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    post = StandIns(behaviour, sites=options.sites, at_answer=at_answer)
    progress = Progress(show=None if options.progress else False)
    transport = WireTransport(post, names, run="soak", patience=60.0, progress=Progress(show=False), spool=folder)
    settings = {"participants": options.sites, "network": options.network, "rounds": options.rounds}
    settings |= {"lies": options.lies, "absences": options.absences}
    with RunFolder(folder).open(settings, seeds={"seed": options.seed}) as run:
        strategy = FedAvg()
        strategy.attach(Server(names, options.rounds, options.seed, weights=weights, guard=UpdateGuard(action="skip")))
        stored = run.store.latest()
        held = run.store.weights(stored["round"]) if stored else weights
        watch = Watch(folder, strategy, behaviour, held[watched(held)].clone())
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
            on_round=watch,
            counts=Counts({name: images_of(name) for name in names}),
        ).run()


def growth(lines: Sequence[Mapping[str, Any]]) -> float:
    """MiB that the longest-lived process grew by in a round: a line through all its rounds but the first three."""
    by: dict[int, list[Mapping[str, Any]]] = {}
    for line in lines:
        by.setdefault(line["process"], []).append(line)
    points = max(by.values(), key=len)[3:]
    if len(points) < 3:
        return float("nan")
    mean = sum(point["round"] for point in points) / len(points)
    across = sum((point["round"] - mean) ** 2 for point in points)
    return sum((point["round"] - mean) * point["MiB"] for point in points) / across


def soak(folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Starts servers, one after the other, until the rounds are done; the journal's lines."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, __file__, "--serve", "--output-dir", str(folder)]
    for name in ("sites", "rounds", "network", "seed", "lies", "absences", "kill_every", "timeout"):
        command += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    command += [] if options.progress else ["--no-progress"]
    while (code := subprocess.run(command).returncode) == -signal.SIGKILL:
        pass
    if code:
        raise SystemExit(code)
    lines = [json.loads(line) for line in (folder / JOURNAL).read_text().splitlines()]
    done = {line["round"] for line in lines}
    # the server may be killed between storing a round and noting it: the round counts, it is in rounds/
    stored = set(RunFolder(folder).store.rounds())
    if stored != set(range(options.rounds)) or len(stored - done) > len({line["process"] for line in lines}):
        raise SystemExit(f"rounds were lost: {sorted(set(range(options.rounds)) - stored)}")
    RunFolder(folder).store.records(options.rounds - 1)  # each can be read
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sites", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--network", default="mobile_sam_fpn", help="of docs/options.md, or MB of weights as a number")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lies", type=float, default=0.05, help="part of all answers")
    parser.add_argument("--absences", type=float, default=0.005, help="part of all answers at which a site goes away")
    parser.add_argument("--kill-every", type=int, default=20, help="rounds between two kills, about; 0 kills none")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds that a round waits for who is away")
    parser.add_argument("--output-dir", type=Path, help="goes on there; a temporary folder if it is left out")
    parser.add_argument("--no-progress", dest="progress", action="store_false", help="no bar")
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
        Figure(f"{what}: rounds lost or not the mean of what counted", 0.0, bound=0.0, unit="rounds"),
        Figure(f"{what}: updates left out, each as its site deserved", float(left_out), unit="updates"),
        Figure(f"{what}: time", sum(line["seconds"] for line in lines) / 60, unit="minutes"),
        Figure(f"{what}: highest memory after a round", max(line["MiB"] for line in lines), unit="MiB"),
        Figure(f"{what}: memory that a round adds", growth(lines), bound=0.05, unit="MiB"),
    ]
    record(__file__, figures, part=f"{options.sites} sites, {options.rounds} rounds")


if __name__ == "__main__":
    main()
