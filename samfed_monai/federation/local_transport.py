"""A federation in one process: clients run one after the other, and nothing is serialised."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from samfed_monai.core import tensor_file
from samfed_monai.core.io import atomic_write, safe_load
from samfed_monai.federation.progress import Progress
from samfed_monai.federation.run_folder import state_file
from samfed_monai.federation.site import ClientAlgoSite, Site
from samfed_monai.protocol.message import Message, MessageRefused, wire_size
from samfed_monai.protocol.transport import Failure, OnReply, SentWeights, Task, Traffic, deliver, log_refusal, scrub

logger = logging.getLogger(__name__)


class LocalTransport:
    """Runs sites in this process, in the order of their names.

    An exception in one site's round becomes that site's :class:`Failure`; its traceback goes to the log of this
    process, which here is also the site's log. In ``CHECK`` and ``PREPARE`` only :class:`MessageRefused` is caught;
    ``KeyboardInterrupt`` and termination signals never are. Traffic is the size that the messages would have on the
    wire, computed without serialising them.

    A deadline cannot interrupt a client in this process: once it has passed, clients that have not started are skipped.

    Args:
        clients: site to a :class:`Site` or :class:`ClientAlgoSite`, or to an initialized MONAI FL client
            (``ClientAlgo``).
        progress: progress bars; ``None`` shows them on a terminal only.
    """

    def __init__(self, clients: Mapping[str, Any], *, progress: Progress | None = None) -> None:
        self.clients: dict[str, Site | ClientAlgoSite] = {
            site: client if isinstance(client, (Site, ClientAlgoSite)) else ClientAlgoSite(site, client)
            for site, client in sorted(clients.items())
        }
        self.progress = progress or Progress()
        self._traffic: dict[str, Traffic] = {}
        self.sites, self.sent = tuple(self.clients), SentWeights()

    def send_and_receive(
        self,
        task: Task,
        messages: Mapping[str, Message],
        *,
        quorum: int = 1,
        timeout: float | None = None,
        on_reply: OnReply = None,
        max_bytes: Callable[[str], int] | None = None,
    ) -> dict[str, Message | Failure]:
        deadline = time.monotonic() + timeout if timeout is not None else float("inf")
        replies: dict[str, Message | Failure] = {}
        with self.progress.sites(len(messages)) as bar:
            for site in sorted(messages):
                if time.monotonic() > deadline:
                    replies[site] = Failure(site, f"not started: the deadline of {timeout:g} s had passed")
                else:
                    bar.set_description(f"{Task(task).value} {site}")
                    replies[site] = self._ask(task, site, messages[site], on_reply)
                bar.update()
        return replies

    def take_traffic(self) -> dict[str, Traffic]:
        traffic, self._traffic = self._traffic, {}
        return traffic

    def save_state(self, folder: Path) -> dict[str, str]:
        digests = {}
        for site, client in self.clients.items():
            if state := client.state_dict():
                with atomic_write(folder / state_file(site)) as stream:
                    digests[state_file(site)] = tensor_file.write_state(stream, state)
        return digests

    def load_state(self, folder: Path) -> None:
        for site, client in self.clients.items():
            path = folder / state_file(site)
            if path.is_file():
                client.load_state_dict(safe_load(path))

    def _ask(self, task: Task, site: str, message: Message, on_reply: OnReply) -> Message | Failure:
        client = self.clients.get(site)
        if client is None:
            return Failure(site, "no such site in this federation")
        traffic = self._traffic.setdefault(site, Traffic())
        traffic.down += wire_size(self.sent.shortened(site, message))
        failure: Failure | None = None
        try:
            with self.progress.iterations(client.engine(task)):
                reply = client.answer(task, message)
            traffic.up += wire_size(reply)
        except MessageRefused as error:
            failure = log_refusal(site, error)
        except Exception as error:
            if task in (Task.CHECK, Task.PREPARE):
                raise
            logger.exception("%s failed in %s", site, Task(task).value)
            failure = Failure(site, scrub(error))
        result = failure or deliver(site, reply, on_reply)
        if isinstance(result, Failure):
            self.sent.forget(site)
        return result
