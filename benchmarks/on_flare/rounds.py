"""Rounds of FedAvg on the payload, with any transport."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from on_flare.payload import Payload
from samfed_monai.federation import Progress, RoundController, RunFolder
from samfed_monai.methods.fedavg import FedAvg
from samfed_monai.protocol import Server

QUIET = Progress(show=False)


def run_rounds(transport: Any, folder: Path, *, rounds: int, megabytes: int, evaluate: bool) -> None:
    """Runs the rounds; with ``evaluate``, sites score the new model in a second exchange of each round."""
    with RunFolder(folder).open({"rounds": rounds}, seeds={"seed": 0}) as run:
        strategy = FedAvg()
        strategy.attach(Server(transport.sites, rounds, weights=dict(Payload(megabytes).state_dict())))
        controller = RoundController(
            transport=transport, strategy=strategy, folder=run, rounds=rounds, progress=QUIET, splits=("validation",)
        )
        if not evaluate:  # FLARE's own FedAvg has one exchange per round
            controller.scores = lambda *_, **__: ({}, {})  # type: ignore[method-assign]
        controller.run()
