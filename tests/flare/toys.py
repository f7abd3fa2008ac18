"""A federation of toy clients on FLARE: the real controller, transport, client and pipes, and no bundle."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from samfed_monai.core.io import read_json, write_json
from samfed_monai.federation.progress import Progress
from samfed_monai.federation.run_folder import RunFolder
from samfed_monai.federation.server import RoundController
from samfed_monai.federation.wire_transport import WireTransport
from samfed_monai.flare.controller import FederationController
from samfed_monai.flare.job import export_job
from samfed_monai.methods.fedavg import FedAvg
from samfed_monai.protocol.message import Message
from samfed_monai.protocol.strategy import Server
from samfed_monai.protocol.transport import Transport
from tests.flare.executors import ToyExecutor

REPO = Path(__file__).parents[2]
QUIET = Progress(show=False)


class Hurried(FedAvg):
    """Averages; from round ``first`` on a site has four times as long as the round before it took, on this machine."""

    controller: RoundController
    first: float
    begun = math.nan

    def configure(self, round: int) -> dict[str, Message]:
        now = time.monotonic()
        if round == self.first:
            self.controller.timeout = max(2.0, 4 * (now - self.begun))
        self.begun = now
        return super().configure(round)


def federate(folder: Path, transport: Transport, plan: Mapping[str, Any]) -> None:
    """Rounds of FedAvg, one site being enough; ``plan`` has ``rounds`` and, for :class:`Hurried`, ``hurried_from``."""
    with RunFolder(folder).open({"rounds": plan["rounds"]}, seeds={"seed": 0}) as run:
        strategy = Hurried()
        weights = {"w": torch.ones(2, 3), "count": torch.tensor(0)}
        strategy.attach(Server(transport.sites, plan["rounds"], weights=weights))
        strategy.first = plan.get("hurried_from", math.inf)
        strategy.controller = RoundController(
            transport=transport,
            strategy=strategy,
            folder=run,
            rounds=plan["rounds"],
            progress=QUIET,
            quorum=1,
            allow_single_site=True,
        )
        strategy.controller.run()


class ToyController(FederationController):
    """Federates the clients of ``tests.flare.toy_worker``."""

    def federate(self, folder: Path) -> None:
        plan = read_json(self.job_config() / "samfed_plan.json")
        clients = tuple(sorted(client.name for client in self.engine.get_clients()))
        self.transport = WireTransport(self.make_post(), clients, run=plan["run"], progress=QUIET, notice=1.0)
        federate(folder, self.transport, plan)


def toy_job(folder: Path, **plan: Any) -> Path:
    """A job of the toy federation."""
    content = {"run": "abc123", **plan}
    return export_job(folder, content, run_name="toy", controller=ToyController, executor=ToyExecutor)


def toy_site_files(folder: Path, sites: Sequence[str], output: Path, memory: float | None = None) -> Path:
    """A folder of site files."""
    for site in (*sites, "server"):
        place = {"output_dir": str(output)} if site == "server" else {"runs_dir": str(folder / "out" / site)}
        own: dict[str, Any] = {**place, "threads": 1}
        own |= {"datalist": str(REPO / "setup.cfg"), "data_root": str(REPO), "cache_dir": str(folder / "cache" / site)}
        own |= {"memory_limit_gib": memory} if memory and site != "server" else {}
        write_json(folder / f"{site}.json", own)
    return folder
