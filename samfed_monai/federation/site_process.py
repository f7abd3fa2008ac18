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

from samfed_monai.core.run_log import is_news
from samfed_monai.federation.child_process import Answer, serve

logger = logging.getLogger(__name__)


def _start(settings: Mapping[str, Any]) -> Callable[[dict[str, Any], bytes], Answer]:
    """What answers questions in this process."""
    log, sites = _Log(int(settings["level"])), _Sites(settings)

    def answer(head: dict[str, Any], payload: bytes) -> Answer:
        reply, content = sites.answer(head, payload)
        return {**reply, "log": log.take()}, content

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


class _Sites:
    """The sites of this process: made from the plan when they are first asked, as in a process that has them all."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        from samfed_monai.core.own_process import set_up_process

        set_up_process()
        import torch

        from samfed_monai.federation.plan import Places, Plan

        torch.set_num_threads(int(settings["threads"]))
        self.plan, self.places = Plan.from_json(settings["plan"]), Places.from_json(settings["places"])
        self._context: Any = None
        self._executors: dict[str, Any] = {}
        self._held: dict[str, Any] = {}

    def answer(self, head: Mapping[str, Any], payload: bytes) -> tuple[dict[str, Any], bytes]:
        """The answer's head and bytes; a head with ``refused``, ``failed`` or ``raised`` says why there are none."""
        from samfed_monai.protocol.message import MessageRefused
        from samfed_monai.protocol.transport import scrub

        site, what = head["site"], head["what"]
        try:
            if what == "finalize":
                self._finalize()
                return {}, b""
            if what == "save":
                return {"sha256": self._save(site, Path(head["path"]))}, b""
            if what == "load":
                self._load(site, Path(head["path"]))
                return {}, b""
            return {}, self._work(site, what, payload)
        except MessageRefused as error:
            return {"refused": scrub(error)}, b""
        except Exception as error:
            if what in ("train", "evaluate"):
                logger.exception("%s failed in %s", site, what)
                return {"failed": scrub(error)}, b""
            return {"raised": _described(error)}, b""

    def _work(self, site: str, what: str, payload: bytes) -> bytes:
        from samfed_monai.protocol.message import from_bytes, to_bytes
        from samfed_monai.protocol.sent_once import HeldWeights
        from samfed_monai.protocol.transport import Task

        executor = self._executor(site)
        message = from_bytes(payload, max_inflated=executor.masks_taken)
        message = self._held.setdefault(site, HeldWeights()).complete(message)
        self._share_teacher(executor, message)
        return to_bytes(executor.answer(Task(what), message))

    def _save(self, site: str, path: Path) -> str | None:
        from samfed_monai.core import tensor_file
        from samfed_monai.core.io import atomic_write

        state = self._executors[site].state_dict() if site in self._executors else {}
        if not state:
            return None
        with atomic_write(path) as stream:
            return tensor_file.write_state(stream, state)

    def _load(self, site: str, path: Path) -> None:
        from samfed_monai.core.io import safe_load

        self._executor(site).load_state_dict(safe_load(path))

    def _finalize(self) -> None:
        for executor in self._executors.values():
            executor.finalize()

    def _executor(self, site: str) -> Any:
        from samfed_monai.data import DataList
        from samfed_monai.federation.participants import Participants
        from samfed_monai.federation.site import ProcessContext, Site

        if self._context is None:
            datalist = DataList.load(self.places.datalist)
            self._context = ProcessContext(Participants.of(self.plan, self.places, datalist), datalist)
        if site not in self._executors:
            self._executors[site] = Site(site, self.plan, self.places, context=self._context)
        return self._executors[site]

    def _share_teacher(self, executor: Any, message: Any) -> None:
        """Loads the server's teacher once for all sites of this process, and lets go of it when they have theirs."""
        from samfed_monai.protocol.message import Kind

        if message.kind != Kind.ADAPTER:
            self._context.teacher = None
        elif self._context.teacher is None and executor.teacher is not None:
            self._context.teacher = executor.teacher.load(message)


def _described(error: Exception) -> dict[str, Any]:
    """An error that the asking process raises as it would have been raised there."""
    from samfed_monai.config.wrapped_errors import unwrap
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
