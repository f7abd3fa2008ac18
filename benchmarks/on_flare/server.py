"""The server of the benchmark's job."""

from __future__ import annotations

from pathlib import Path

from on_flare.rounds import QUIET, run_rounds
from samfed_monai.core.io import read_json
from samfed_monai.federation.wire_transport import WireTransport
from samfed_monai.flare.controller import FederationController


class BenchController(FederationController):
    """The package's controller and transport, with the payload as the model."""

    def federate(self, folder: Path) -> None:
        plan = read_json(self.job_config() / "samfed_plan.json")
        clients = tuple(sorted(client.name for client in self.engine.get_clients()))
        self.transport = WireTransport(self.make_post(), clients, run="abc123", progress=QUIET)
        run_rounds(self.transport, folder, **plan)
