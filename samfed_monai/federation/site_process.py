"""A process in which some of a machine's sites work: ``python -m samfed_monai.federation.site_process PIPE``.

What is logged here is sent with the answers and logged by the process that asked, which runs on the same machine, for
the same user.
"""

from __future__ import annotations

import logging
import signal
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from samfed_monai.core.own_process import set_up_process
from samfed_monai.core.run_log import is_news
from samfed_monai.federation.child_process import Answer, serve

logger = logging.getLogger(__name__)


def _start(settings: Mapping[str, Any]) -> Callable[[dict[str, Any], bytes], Answer]:
    """What answers questions in this process, with sites made from the plan, as in a process that has them all."""
    set_up_process()
    import torch

    from samfed_monai.core.io import as_file_name
    from samfed_monai.federation.plan import Places, Plan
    from samfed_monai.federation.site import ProcessContext, Site
    from samfed_monai.federation.site_worker import SiteWorker
    from samfed_monai.protocol.message import MessageRefused
    from samfed_monai.protocol.transport import Task, scrub

    torch.set_num_threads(int(settings["threads"]))
    log, plan, places = _Log(settings["level"]), Plan.from_json(settings["plan"]), Places.from_json(settings["places"])
    contexts: list[ProcessContext] = []

    def make_site(name: str) -> Site:
        if not contexts:
            contexts.append(ProcessContext.of(plan, places))
        return Site(name, plan, places, context=contexts[0])

    worker = SiteWorker(make_site, lambda name: Path(settings["states"]) / as_file_name(name))

    def answer(head: dict[str, Any], payload: bytes) -> Answer:
        try:
            if head["task"] == "finalize":
                worker.finalize()
                return {"log": log.take()}, b""
            content = worker.answer(head["site"], Task(head["task"]), payload, head["keep"])
            return {"log": log.take()}, content
        except Exception as error:
            if not isinstance(error, MessageRefused):
                if head["task"] in (Task.CHECK, Task.PREPARE):
                    return {"raised": _described(error), "log": log.take()}, b""
                logger.exception("%s failed in %s", head["site"], head["task"])
            return {"failure": scrub(error), "log": log.take()}, b""

    return answer


class _Log(logging.Handler):
    """Keeps what is logged until it travels."""

    def __init__(self, level: int) -> None:
        super().__init__()
        self.addFilter(is_news)
        self._kept: list[tuple[str, int, str]] = []
        logging.getLogger().addHandler(self)
        logging.getLogger("samfed_monai").setLevel(level)

    def emit(self, record: logging.LogRecord) -> None:
        self._kept.append((record.name, record.levelno, self.format(record)))

    def take(self) -> list[tuple[str, int, str]]:
        """What was logged since this was last called."""
        kept, self._kept = self._kept, []
        return kept


def _described(error: Exception) -> dict[str, Any]:
    """An error that the asking process raises as it would have been raised there."""
    from samfed_monai.config.workflow import unwrap
    from samfed_monai.core.errors import Refused, Stopped

    known = unwrap(error)
    if isinstance(known, Refused):
        return {"problems": [[each.where, each.found, each.expected, each.hint] for each in known.problems]}
    if isinstance(known, Stopped):
        return {"stopped": [known.reason, known.resume]}
    number = error.errno if isinstance(error, OSError) else None
    return {"error": "".join(traceback.format_exception(error)), "errno": number}


def main() -> None:
    """Answers until the process that asks is gone."""
    # Ctrl-C in a terminal, or a signal to the whole group, is for the process that asks; it ends this one
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    serve(_start)


if __name__ == "__main__":
    main()
