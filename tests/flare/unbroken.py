"""What a run of toys on FLARE comes to in one process, in which no site was killed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from samfed_monai.federation import LocalTransport
from samfed_monai.federation.site import ClientAlgoSite
from samfed_monai.protocol import Message, Task
from tests.flare.toy_worker import Stepper
from tests.flare.toys import QUIET, federate


class Here(ClientAlgoSite):
    """A client of this process, which is not there in some rounds."""

    def __init__(self, site: str, absent: Sequence[int]) -> None:
        super().__init__(site, Stepper(site))
        self.absent = absent

    def answer(self, task: Task, message: Message) -> Message:
        if task == Task.TRAIN and message.round in self.absent:
            raise OSError("not there")
        return self.client.answer(task, message)


def unbroken(folder: Path, *, rounds: int, absent: Mapping[str, Sequence[int]]) -> Path:
    """Folder of the run; each site is ``absent`` in some rounds."""
    transport = LocalTransport({site: Here(site, there) for site, there in absent.items()}, progress=QUIET)
    federate(folder, transport, {"rounds": rounds})
    return folder
