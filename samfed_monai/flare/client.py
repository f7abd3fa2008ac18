"""What FLARE starts at a site: a light process that takes FLARE's tasks and has another process work on them.

``python -m samfed_monai.flare.client``. It never imports torch: where the process that trains dies (kill -9, out of
memory), it is still there, reports the round as failed, and starts a fresh process for the next one, which goes on from
the state that the site keeps on disk.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from samfed_monai.core.errors import Problem, Refused
from samfed_monai.core.io import make_folder
from samfed_monai.federation.child_process import Child, ChildDied
from samfed_monai.flare.needs import require_flare
from samfed_monai.flare.site_file import SiteFile, forget_old_runs, read_site_file, require_run_name

logger = logging.getLogger(__name__)

WORKER = "samfed_monai.flare.worker"
PLAN = "samfed_plan.json"
_SHORT = frozenset("0123456789abcdef")


class Site:
    """A site of one run: its files, and the process that trains.

    Args:
        name: the site's name.
        files: its site file.
        app: folder of the FLARE app; ``config/samfed_plan.json`` below it is the run's plan.
        worker: module of the process that trains.
    """

    def __init__(self, name: str, files: SiteFile, app: Path, *, worker: str = WORKER) -> None:
        self.name, self.files, self.app, self.worker = name, files, app, worker
        self._child: Child | None = None
        self._run, self._first = "", ("", "")

    def answer(self, words: dict[str, Any], payload: bytes) -> tuple[bytes, str]:
        """The answer's bytes, or why there is none; the second is empty for an answer.

        Args:
            words: ``task``, ``run``, ``run_name`` and ``keep`` of the message.
            payload: a message's bytes.
        """
        try:
            self._enter(str(words.get("run", "")), str(words.get("run_name", "")))
            child = self._ready_child()
            head, content = child.ask(_head(words), payload)
            return content, str(head.get("failure", ""))
        except ChildDied as error:
            logger.warning("%s", error)
            return b"", str(error)
        except Refused as error:  # of the message, which the server knows
            logger.warning("%s", error)
            return b"", "; ".join(map(str, error.problems))
        except OSError as error:
            logger.exception("the site's files")
            return b"", f"OSError ({os.strerror(error.errno)})" if error.errno else "OSError"

    def close(self) -> None:
        """Ends the process that trains."""
        if self._child is not None:
            self._child.stop()

    def _enter(self, run: str, run_name: str) -> None:
        if run == self._run:
            return
        self.close()
        self._run, self._child = "", None  # until all of it is there: an error of the disk may be gone by the next task
        if not run or set(run) - _SHORT:
            raise ChildDied("the message names no run")
        require_run_name(run_name, "message -> run_name")
        self._require_this_job_s(run, run_name)
        state = self._state_of(run)
        make_folder(state)
        forget_old_runs(state.parent.parent, run)
        settings = {
            "site": self.name,
            "plan": str(self.app / "config" / PLAN),
            "site_file": str(self.files.path),
            "run_folder": str(self.files.run_folder(run_name)),
            "state": str(state),
        }
        # not in the job's folder: Python would import from it what the job has there
        self._first = (run, run_name)
        self._run, self._child = run, Child(self.worker, settings, log=state / "worker.log", cwd=state)

    def _require_this_job_s(self, run: str, run_name: str) -> None:
        """A job has one run: what a site may be asked in a round is counted in the run's folder."""
        if self._first[0] and self._first != (run, run_name):
            expected, hint = "the one that this job began with", "submit a job of its own for another run"
            raise Refused([Problem("message -> run", found="another run", expected=expected, hint=hint)])

    @property
    def state(self) -> Path:
        """Folder of what this site keeps between the rounds of the run."""
        return self._state_of(self._run)

    def _state_of(self, run: str) -> Path:
        return self.files.cache_dir / "state" / run / self.name

    def _ready_child(self) -> Child:
        assert self._child is not None
        if not self._child.alive:
            self._child.start()
        return self._child


def _head(words: dict[str, Any]) -> dict[str, Any]:
    keep = [number for number in words.get("keep", ()) if type(number) is int]
    return {"task": str(words.get("task", "")), "keep": keep}


def main(argv: Sequence[str] | None = None) -> int:
    """Serves FLARE until the job ends."""
    parser = argparse.ArgumentParser(prog="samfed_monai.flare.client")
    parser.add_argument("--worker", default=WORKER, help="module of the process that trains")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    require_flare()
    import numpy as np
    import nvflare.client as flare
    from nvflare.app_common.abstract.fl_model import FLModel, ParamsType

    flare.init()
    name = flare.get_site_name()
    app = Path.cwd()
    site, problem = None, ""
    try:
        site = Site(name, read_site_file(app, name), app, worker=arguments.worker)
    except Refused as error:
        logger.error("%s", error)
        problem = "; ".join(_of_site_file(error))
    try:
        while flare.is_running():
            message = flare.receive()
            if message is None:
                break
            payload = (message.params or {}).get("message")
            content, failure = b"", problem or "the task holds no message"
            if site is not None and isinstance(payload, np.ndarray):
                content, failure = site.answer(dict(message.meta or {}), payload.tobytes())
            answer = np.frombuffer(content, dtype=np.uint8) if content else np.zeros(0, dtype=np.uint8)
            flare.send(
                FLModel(
                    params={"message": answer},
                    params_type=ParamsType.FULL,
                    current_round=message.current_round,
                    meta={"failure": failure},
                )
            )
    finally:
        if site is not None:
            site.close()
    return 0


def _of_site_file(error: Refused) -> list[str]:
    # paths of the site stay at the site: only which key is wrong, and how to fix it
    return [f"{problem.where.rpartition('/')[2]}: {problem.hint or problem.expected}" for problem in error.problems[:5]]


if __name__ == "__main__":
    sys.exit(main())
