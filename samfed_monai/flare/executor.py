"""A site's part of a FLARE job: FLARE's client process receives the tasks, a separate process trains.

Neither FLARE's process nor this module imports torch: if the process that trains dies (kill -9, out of memory), the
round is reported as failed, and a new process continues in the next round from the state on the site's disk.
"""

from __future__ import annotations

import logging
import os
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.executor import Executor
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal

from samfed_monai.core.errors import Refused, refused
from samfed_monai.core.io import make_folder
from samfed_monai.federation.child_process import Child, ChildDied
from samfed_monai.flare.site_file import PLAN, SiteFile, read_site_file, require_run_name

logger = logging.getLogger(__name__)

WORKER = "samfed_monai.flare.worker"
#: Key of a message's bytes in the data, and of a failure's reason in the metadata.
MESSAGE, FAILURE = "message", "failure"


def pack(payload: bytes, **meta: Any) -> Shareable:
    """Returns a message in FLARE's form: one array of bytes, with plain values as metadata."""
    data = {MESSAGE: np.frombuffer(payload, dtype=np.uint8)}
    shareable: Shareable = DXO(DataKind.WEIGHTS, data=data, meta=meta).to_shareable()
    return shareable


def unpack(shareable: Shareable) -> tuple[bytes | None, dict[str, Any]]:
    """Returns a message's bytes (``None`` if there are none) and its metadata."""
    try:
        dxo = from_shareable(shareable)
    except ValueError:
        return None, {}
    content = dxo.data.get(MESSAGE) if isinstance(dxo.data, dict) else None
    if not isinstance(content, np.ndarray) or content.dtype != np.uint8 or content.ndim != 1:
        return None, dict(dxo.meta or {})
    return content.tobytes(), dict(dxo.meta or {})


class Trainer:
    """The process that trains at a site, for the one run of a job.

    Args:
        site: the site's name.
        files: its site file.
        app: folder of the FLARE app; ``config/samfed_plan.json`` below it is the run's plan.
        worker: module of the process.
    """

    def __init__(self, site: str, files: SiteFile, app: Path, *, worker: str = WORKER) -> None:
        self.site, self.files, self.app, self.worker = site, files, app, worker
        self._child: Child | None = None
        self._run: tuple[str, str] | None = None

    def answer(self, meta: dict[str, Any], payload: bytes) -> tuple[bytes, str]:
        """Returns the reply's bytes and ``""``, or no bytes and the reason.

        Args:
            meta: ``task``, ``run``, ``run_name`` and ``keep`` of the message.
            payload: the message's bytes.
        """
        content, reason = b"", ""
        try:
            child = self._child_of(str(meta.get("run", "")), str(meta.get("run_name", "")))
            keep = [number for number in meta.get("keep", ()) if type(number) is int]
            head, content = child.ask({"task": str(meta.get("task", "")), "keep": keep}, payload)
            reason = str(head.get("failure", ""))
        except ChildDied as error:
            reason = str(error)
        except Refused as error:  # it is about the message, which the server knows
            reason = "; ".join(map(str, error.problems))
        except OSError as error:
            logger.exception("cannot access a file of this site")
            reason = f"OSError ({os.strerror(error.errno)})" if error.errno else "OSError"
        if reason:  # for the operator, who reads the log of FLARE's client
            logger.warning("%s%s", reason, f"; details: {self._child.log}" if self._child else "")
        return content, reason

    def kill(self) -> None:
        """Kills the process; a pending :meth:`answer` in another thread then returns."""
        if self._child is not None:
            self._child.kill()

    def close(self) -> None:
        """Ends the process."""
        if self._child is not None:
            self._child.stop()

    def state_of(self, run: str) -> Path:
        """Folder of this site's states between the rounds of a run."""
        return self.files.cache_dir / "state" / run / self.site

    def _child_of(self, run: str, run_name: str) -> Child:
        if not run or set(run) - set("0123456789abcdef"):
            raise ChildDied("the message has no valid run identifier")
        require_run_name(run_name, "message -> run_name")
        if self._run not in (None, (run, run_name)):  # the run's folder counts the requests of each round
            expected, hint = "the run that this job started with", "submit a separate job for another run"
            raise refused("message -> run", "another run", expected, hint)
        if self._child is None:
            make_folder(state_folder := self.state_of(run))
            settings = {
                "site": self.site,
                "plan": str(self.app / "config" / PLAN),
                "site_file": str(self.files.path),
                "run_folder": str(self.files.run_folder(run_name)),
                "state": str(state_folder),
            }
            # not in the job's folder: Python would import modules from there
            self._child = Child(self.worker, settings, log=state_folder / "worker.log", cwd=state_folder)
            self._run = (run, run_name)
        if not self._child.alive:
            self._child.start()
        return self._child


class SiteExecutor(Executor):
    """Runs every task in a process of this package, regardless of the job's content.

    FLARE's ``ClientAPIExecutor`` starts the command that a job names, so a site that allows it runs any command of a
    submitter. This class takes no argument: a job that passes one, such as a command, fails at the site when FLARE
    builds it. The process checks the plan before it builds anything (:func:`samfed_monai.flare.site_file.read_plan`).

    Example (``config_fed_client.json``)::

        {"path": "samfed_monai.flare.executor.SiteExecutor", "args": {}}
    """

    #: Module of the process that trains; a subclass, which a site lists by its own name, may have another.
    worker: ClassVar[str] = WORKER

    def __init__(self) -> None:
        super().__init__()
        self._trainer: Trainer | None = None

    def execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        """Called by FLARE for each task."""
        payload, meta = unpack(shareable)
        if payload is None:
            return pack(b"", failure="the task contains no message")
        if self._trainer is None:
            app, site = Path(fl_ctx.get_workspace().get_app_dir(fl_ctx.get_job_id())), fl_ctx.get_identity_name()
            try:
                self._trainer = Trainer(site, read_site_file(app, site), app, worker=self.worker)
            except Refused as error:
                logger.error("%s", error)  # no paths leave the site: only keys of its file and hints
                texts = [(one.where.split("/")[-1], one.hint or f"expected {one.expected}") for one in error.problems]
                return pack(b"", failure="; ".join(map(": ".join, texts)))
        with ThreadPoolExecutor(max_workers=1) as pool:
            pending = pool.submit(self._trainer.answer, meta, payload)
            while not wait([pending], timeout=0.5).done:
                if abort_signal.triggered:
                    self._trainer.kill()
            content, failure = pending.result()
        return pack(content, failure=failure)

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Called by FLARE; ends the process with the job."""
        if event_type == EventType.END_RUN and self._trainer is not None:
            self._trainer.close()
