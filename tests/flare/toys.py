"""A federation of toy clients on FLARE: the real controller, transport, client and pipes, and no bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from samfed_monai.core.io import read_json, write_json
from samfed_monai.federation import RoundController, RunFolder
from samfed_monai.federation.wire_transport import WireTransport
from samfed_monai.flare.controller import FederationController
from samfed_monai.flare.job import export_job
from samfed_monai.methods.fedavg import FedAvg
from samfed_monai.protocol import Message, Server
from tests.federation.toys import QUIET, weights
from tests.flare.executors import ToyExecutor

REPO = Path(__file__).parents[2]


class Hurried(FedAvg):
    """Averages; a round from ``first`` on has ``seconds``: by then all processes run, and none is waited for longer."""

    controller: RoundController
    first: int
    seconds: float

    def configure(self, round: int) -> dict[str, Message]:
        if round >= self.first:
            self.controller.timeout = self.seconds
        return super().configure(round)


class ToyController(FederationController):
    """Rounds of FedAvg over the toy bundle, with the clients of ``tests.flare.toy_worker``."""

    def federate(self, folder: Path) -> None:
        plan = read_json(self.job_config() / "samfed_plan.json")
        clients = tuple(sorted(client.name for client in self.engine.get_clients()))
        self.transport = WireTransport(self.make_post(), clients, run=plan["run"], progress=QUIET, notice=1.0)
        with RunFolder(folder).open({"rounds": plan["rounds"]}, seeds={"seed": 0}) as run:
            strategy = Hurried()
            strategy.attach(Server(self.transport.sites, plan["rounds"], weights=weights()))
            strategy.first, strategy.seconds = plan.get("deadline", (plan["rounds"], None))
            strategy.controller = RoundController(
                transport=self.transport,
                strategy=strategy,
                folder=run,
                rounds=plan["rounds"],
                progress=QUIET,
                quorum=plan.get("quorum"),
                allow_single_site=plan.get("allow_single_site", False),
            )
            strategy.controller.run()


def toy_job(folder: Path, run_name: str = "toy", **plan: Any) -> Path:
    """A job of the toy federation."""
    return export_job(
        folder,
        {"rounds": 3, "run": "abc123", **plan},
        run_name=run_name,
        controller=ToyController,
        executor=ToyExecutor,
    )


def toy_site_files(folder: Path, sites: tuple[str, ...], output: Path, memory: float | None = None) -> Path:
    """A folder of site files."""
    for site in (*sites, "server"):
        places = {
            "datalist": str(REPO / "setup.cfg"),
            "data_root": str(REPO),
            "cache_dir": str(folder / "cache" / site),
        }
        own = {"output_dir": str(output if site == "server" else folder / "out" / site), "threads": 1}
        if memory and site != "server":
            own["memory_limit_gib"] = memory
        write_json(folder / f"{site}.json", {**places, **own})
    return folder


__all__ = ["Message", "ToyController", "toy_job", "toy_site_files"]
