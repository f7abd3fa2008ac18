"""The process that trains at a site: ``python -m samfed_monai.flare.worker PIPE``.

Errors stay in its log; only a scrubbed line is sent (:func:`samfed_monai.protocol.transport.scrub`).
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from samfed_monai.core.own_process import set_up_process
from samfed_monai.federation import child_process
from samfed_monai.federation.child_process import Answer
from samfed_monai.flare.site_file import SiteFile, limit, read_site_file

logger = logging.getLogger(__name__)


def serve(make_site: Callable[[dict[str, Any], SiteFile], Any]) -> NoReturn:
    """Answers until the pipe ends.

    Args:
        make_site: from the settings and the site's file, what answers, as :class:`.SiteWorker` takes it.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    set_up_process()

    def start(settings: dict[str, Any]) -> Callable[[dict[str, Any], bytes], Answer]:
        os.environ["SAMFED_SITE"] = settings["site_file"]
        files = read_site_file(Path.cwd(), settings["site"])
        limit(files)
        return answering(settings, lambda _: make_site(settings, files))

    child_process.serve(start)


def answering(settings: dict[str, Any], make_site: Callable[[str], Any]) -> Callable[[dict[str, Any], bytes], Answer]:
    """What answers the FLARE client's questions.

    Args:
        settings: ``site``, and ``state``, the folder of what it keeps in this run.
        make_site: from the site's name, what answers.
    """
    from samfed_monai.federation.site_worker import SiteWorker, forget_old_runs  # torch: not before the limits are set
    from samfed_monai.protocol.transport import Task, scrub

    state = Path(settings["state"])
    forget_old_runs(state.parent.parent, state.parent.name)
    worker = SiteWorker(make_site, lambda _: state)

    def answer(head: dict[str, Any], payload: bytes) -> Answer:
        try:
            return {}, worker.answer(settings["site"], Task(head["task"]), payload, head.get("keep", ()))
        except Exception as error:
            logger.exception("%s", head.get("task"))
            return {"failure": scrub(error)}, b""

    return answer


def make_federated_site(settings: dict[str, Any], files: SiteFile) -> Any:
    """The run's :class:`~samfed_monai.federation.site.Site` at this site."""
    from samfed_monai.flare.site import federated_site

    return federated_site(settings, files)


if __name__ == "__main__":
    serve(make_federated_site)
