"""The process that trains at a site: ``python -m samfed_monai.flare.worker PIPE``.

Errors stay in its log; only a scrubbed line goes up (:func:`samfed_monai.protocol.transport.scrub`).
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
        make_site: from the settings and the site's file, what answers: ``answer(task, message) -> message``, with
            ``state_dict`` and ``load_state_dict`` where it keeps something from round to round, and ``masks_taken``
            (:meth:`Site.masks_taken`) where it takes soft masks.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    set_up_process()

    def start(settings: dict[str, Any]) -> Callable[[dict[str, Any], bytes], Answer]:
        os.environ["SAMFED_SITE"] = settings["site_file"]
        files = read_site_file(Path.cwd(), settings["site"])
        limit(files)
        worker = _Worker(settings, files, make_site)

        def answer(head: dict[str, Any], payload: bytes) -> Answer:
            content, failure = worker.answer(head, payload)
            return {"failure": failure}, content

        return answer

    child_process.serve(start)


class _Worker:
    """Decodes, asks the node, keeps its state, encodes."""

    def __init__(self, settings: dict[str, Any], files: SiteFile, make_site: Callable[..., Any]) -> None:
        self.settings, self.files, self.make_site = settings, files, make_site
        self._site: Any = None
        self._held: Any = None
        self._state: Any = None

    def answer(self, head: dict[str, Any], payload: bytes) -> tuple[bytes, str]:
        """The answer's bytes and why there is none."""
        from samfed_monai.protocol.transport import scrub

        try:
            return self._answer(head, payload), ""
        except Exception as error:
            logger.exception("%s", head.get("task"))
            if self._state is not None:
                self._state.failed()
            return b"", scrub(error)

    def _answer(self, head: dict[str, Any], payload: bytes) -> bytes:
        from samfed_monai.flare.site import SiteState
        from samfed_monai.protocol.message import from_bytes, to_bytes
        from samfed_monai.protocol.sent_once import HeldWeights
        from samfed_monai.protocol.transport import Task

        self._held = self._held or HeldWeights()
        if self._site is None:
            self._site = self.make_site(self.settings, self.files)
            self._state = SiteState(self.settings["state"], self._site)
        most = getattr(self._site, "masks_taken", int)  # one that knows of none takes none
        task, message = Task(head["task"]), self._held.complete(from_bytes(payload, max_inflated=most))
        if message.extra.get("model") != "teacher":  # its exam comes before round 0 and looks at no network
            self._state.before(task, message.round)
        reply = self._site.answer(task, message)
        answer = to_bytes(reply)
        self._state.after(task, message.round, head.get("keep", ()))
        return answer


def make_federated_site(settings: dict[str, Any], files: SiteFile) -> Any:
    """The run's :class:`~samfed_monai.federation.site.Site` at this site."""
    from samfed_monai.flare.site import federated_site

    return federated_site(settings, files)


if __name__ == "__main__":
    serve(make_federated_site)
