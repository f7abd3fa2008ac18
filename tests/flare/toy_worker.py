"""The process that trains, with a client of one number, which can fail in a given round (``faults`` of the plan).

It imports no MONAI: what is tested is what becomes of processes, and one that starts late is waited for.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from samfed_monai.core.io import read_json
from samfed_monai.flare.worker import serve
from samfed_monai.protocol.message import Kind, Message
from samfed_monai.protocol.transport import Task


class Stepper:
    """Adds to every weight what it has kept since the last round, and the round and its own number.

    So a client that loses its state, or keeps that of a round which never counted, comes to another model.

    Args:
        site: ``site-1`` and so on; the number is that of its images, too.
    """

    def __init__(self, site: str) -> None:
        self.number = int(site.rpartition("-")[2])
        self.kept = torch.zeros(1)

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"kept": self.kept.clone()}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        self.kept = state["kept"].clone()

    def answer(self, task: Task, message: Message) -> Message:
        answer = replace(message, kind=Kind.METRICS, tensors={}, extra={})
        if task == Task.CHECK:
            return answer
        if task == Task.EVALUATE:
            return replace(answer, n=self.number, metrics={"dice": 0.5, "iou": 0.25, "hd95": 2.0, "empty_both": 1})
        self.kept = self.kept / 2 + self.number + message.round
        trained = {
            name: tensor + self.kept if tensor.is_floating_point() else tensor + 1
            for name, tensor in message.tensors.items()
        }
        return replace(answer, kind=Kind.WEIGHTS, n=self.number, tensors=trained, metrics={"seconds": 0.0})


class ToyNode(Stepper):
    """Fails in some rounds, once in each, after it has trained.

    Args:
        site: its name.
        faults: of each ``round``, ``what`` and, of a ``sleep``, ``seconds``.
        state: folder in which it notes that it has failed.
    """

    def __init__(self, site: str, faults: Sequence[Mapping[str, Any]], state: Path) -> None:
        super().__init__(site)
        self.faults, self.state = {fault["round"]: fault for fault in faults}, state

    def answer(self, task: Task, message: Message) -> Message:
        answer = super().answer(task, message)
        fault, once = self.faults.get(message.round), self.state / f"fault-of-{message.round}"
        if task == Task.TRAIN and fault is not None and not once.exists():
            once.touch()
            if fault["what"] == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if fault["what"] == "sleep":
                time.sleep(fault["seconds"])
            if fault["what"] == "memory":
                bytearray(8 * 1024**3)
        return answer


def make(settings: dict[str, Any], files: Any) -> ToyNode:
    faults = read_json(settings["plan"]).get("faults", {}).get(settings["site"], [])
    return ToyNode(settings["site"], faults, Path(settings["state"]))


if __name__ == "__main__":
    serve(make)
