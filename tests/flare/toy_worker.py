"""The process that trains, with a toy client in it, which can be told to fail in a round (``faults`` of the plan)."""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from samfed_monai.core.io import read_json
from samfed_monai.flare.worker import serve


class ToyNode:
    """Answers as ``LocalTransport`` has a client answer."""

    def __init__(self, site: str, plan: dict[str, Any], output: Path, state: Path) -> None:
        from tests.federation.toys import toy_algo

        self.client = toy_algo(site, output_dir=output / "evaluation")
        self.fault = plan.get("faults", {}).get(site, {})
        self.once = state / "fault-done"

    def state_dict(self) -> Any:
        return self.client.state_dict()

    def load_state_dict(self, state: Any) -> None:
        self.client.load_state_dict(state)

    def answer(self, task: Any, message: Any) -> Any:
        from samfed_monai.federation.exchange_object import call_extra, from_exchange_object, to_exchange_object
        from samfed_monai.protocol.message import Kind
        from samfed_monai.protocol.transport import Task

        data, extra = to_exchange_object(message), call_extra(message)
        if task == Task.CHECK:
            return replace(message, kind=Kind.METRICS, tensors={}, extra={})
        if task == Task.EVALUATE:
            return from_exchange_object(self.client.evaluate(data, extra), request=message)
        self.client.train(data, extra)
        if task == Task.TRAIN and message.round == self.fault.get("round") and not self.once.exists():
            self.once.touch()
            if self.fault["what"] == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.fault["what"] == "sleep":
                time.sleep(self.fault["seconds"])
            if self.fault["what"] == "memory":
                bytearray(8 * 1024**3)
        return from_exchange_object(self.client.get_weights(extra), request=message)


def make(settings: dict[str, Any], files: Any) -> ToyNode:
    plan = read_json(settings["plan"])
    return ToyNode(settings["site"], plan, Path(settings["run_folder"]), Path(settings["state"]))


if __name__ == "__main__":
    sys.exit(serve(make))
