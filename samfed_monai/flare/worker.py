"""The process that trains at a site: ``python -m samfed_monai.flare.worker PIPE``.

Errors stay in its log; only a scrubbed line is sent (:func:`samfed_monai.protocol.transport.scrub`).
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from samfed_monai.core.io import read_json, write_json
from samfed_monai.core.process_setup import set_up_process
from samfed_monai.federation import child_process
from samfed_monai.federation.child_process import Reply
from samfed_monai.flare.site_file import SiteFile, apply_limits, read_plan, read_site_file

if TYPE_CHECKING:
    from samfed_monai.federation.site import Site

logger = logging.getLogger(__name__)


def serve(make_site: Callable[[dict[str, Any], SiteFile], Any]) -> NoReturn:
    """Serves requests until the pipe is closed.

    Args:
        make_site: makes the site from the settings and the site's file, see :class:`.SiteWorker`.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    set_up_process()

    def start(settings: dict[str, Any]) -> Callable[[dict[str, Any], bytes], Reply]:
        os.environ["SAMFED_SITE"] = settings["site_file"]
        files = read_site_file(Path.cwd(), settings["site"])
        apply_limits(files)
        # these import torch, so not before the limits are set
        from samfed_monai.federation.site_worker import SiteWorker, remove_old_states
        from samfed_monai.protocol.transport import Task, scrub

        state = Path(settings["state"])
        remove_old_states(state.parent.parent, state.parent.name)
        worker = SiteWorker(lambda _: make_site(settings, files), lambda _: state)

        def handle(head: dict[str, Any], payload: bytes) -> Reply:
            try:
                return {}, worker.answer(settings["site"], Task(head["task"]), payload, head["keep"])
            except Exception as error:
                logger.exception("%s", head["task"])
                return {"failure": scrub(error)}, b""

        return handle

    child_process.serve(start)


def federated_site(settings: dict[str, Any], files: SiteFile) -> Site:
    """Builds the site that handles the requests.

    Args:
        settings: ``site``, ``plan`` (a file), ``run_folder`` and ``state``, from the FLARE client.
        files: the site's file.

    Raises:
        MessageRefused: the site's part of the data list differs from that of the run's earlier rounds.
        Refused: a plan that is or could become code, reads images in another way than the site's own bundle, or is not
            a plan; a bundle that is not here.
    """
    from samfed_monai.federation.participants import require_own_images
    from samfed_monai.federation.site import Site
    from samfed_monai.privacy.rules import PrivacyFloor
    from samfed_monai.protocol.message import message_refused
    from samfed_monai.protocol.statistics import StatisticKind

    plan = read_plan(settings["plan"])
    paths = files.paths(plan, Path(settings["run_folder"]))
    require_own_images(plan, paths, settings["site"])
    allowed = None if files.statistics is None else tuple(map(StatisticKind, files.statistics))
    floor = PrivacyFloor(files.least_images or 1, files.epsilon, allowed)
    state = Path(settings["state"])
    site = Site(settings["site"], plan, paths, floor=floor, run=state.parent.name)
    part, listed = {"list": site.checked_list().part_hash(site.site)}, state / "list.json"
    trained = site.release.trainings or any(state.glob("[0-9]*.safetensors"))  # the former may have been moved away
    if trained and listed.is_file() and read_json(listed) != part:
        hint = "start a new run if the site's images changed"
        raise message_refused("data list", "another part of this site", "the part of earlier rounds", hint)
    write_json(listed, part)
    return site


if __name__ == "__main__":
    serve(federated_site)
