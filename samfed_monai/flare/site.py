"""A site's part of a run on FLARE: the plan that came with the job, and its state between rounds."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samfed_monai.config import find_bundle
from samfed_monai.config.bundles import packaged_bundle
from samfed_monai.config.strict import strict_problems
from samfed_monai.core import tensor_file
from samfed_monai.core.errors import Problem, Refused
from samfed_monai.core.io import atomic_write, read_json, safe_load
from samfed_monai.federation.plan import Places, Plan
from samfed_monai.flare.site_file import KEPT_RUNS, REMOVED, SiteFile
from samfed_monai.privacy.rules import PrivacyFloor
from samfed_monai.protocol.message import MessageRefused
from samfed_monai.protocol.statistics import StatisticKind
from samfed_monai.protocol.transport import Task

if TYPE_CHECKING:
    from samfed_monai.federation.site import Site

logger = logging.getLogger(__name__)


def federated_site(settings: dict[str, Any], files: SiteFile) -> Site:
    """What answers at this site.

    Args:
        settings: ``site``, ``plan`` (a file) and ``run_folder``, from the FLARE client.
        files: the site's file.

    Raises:
        Refused: a plan that is or could become code, reads images in another way than the site's own bundle, or is
            none; a bundle that is not here.
    """
    from samfed_monai.federation.participants import require_own_images  # MONAI: not before there is something to build
    from samfed_monai.federation.site import Site

    plan = read_plan(settings["plan"])
    places = places_of(files, plan, Path(settings["run_folder"]))
    require_own_images(plan, places, settings["site"])
    allowed = None if files.statistics is None else tuple(map(StatisticKind, files.statistics))
    floor = PrivacyFloor(files.least_images or 1, files.epsilon, allowed)
    return Site(settings["site"], plan, places, floor=floor)


def read_plan(path: str | Path) -> Plan:
    """Reads a plan that came with a job; nothing in it may be an expression, a place, or a class nobody listed.

    Raises:
        Refused: every problem of it.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise Refused([Problem("plan", found=type(content).__name__, expected="a JSON object")])
    plan = Plan.from_json(content)
    problems = strict_problems(dict(plan.train), "plan")
    problems += strict_problems({"teacher": dict(plan.teacher)}, "plan")
    for site, choices in dict(plan.sites).items():
        problems += strict_problems(dict(choices), f"plan -> sites -> {site}")
    if "/" in plan.bundle or "\\" in plan.bundle or plan.bundle.startswith("."):
        problems.append(Problem("plan -> bundle", found=repr(plan.bundle), expected="a bundle's name, not a path"))
    if problems:
        raise Refused(problems)
    return plan


def places_of(files: SiteFile, plan: Plan, run_folder: Path) -> Places:
    """Where things lie, from the site's own file alone; a folder that came with the job is no bundle.

    Raises:
        Refused: the file names no bundle, and none of the plan's name comes with the package.
    """
    return Places(
        bundle_root=find_bundle(files.bundle_root) if files.bundle_root else packaged_bundle(plan.bundle),
        datalist=files.datalist,
        data_root=files.data_root,
        output_dir=run_folder,
        cache_dir=files.cache_dir,
        adapter=files.adapter,
        start_from=files.start_from,
        train={"device": files.device} if files.device else {},
    )


#: The state after preparation, before round 0.
PREPARED = -1


class SiteState:
    """Which round's state a site is at, and the files of the others.

    Training of round r goes on from the newest state before r, evaluation of round r looks at the newest one up to r:
    so a round that was trained and never stored by the server is forgotten, and a round that this site missed is
    stepped over. The server need not say which state it means.

    Args:
        folder: where the files are.
        holder: whose state it is.
    """

    def __init__(self, folder: str | Path, holder: Any) -> None:
        self.folder, self.holder = Path(folder), holder
        self.at: int | None = None

    def before(self, task: Task, round: int) -> None:
        """Takes the holder to the state that ``task`` of ``round`` starts from.

        Raises:
            MessageRefused: the states of this run were removed (:func:`forget_old_runs`).
        """
        if task not in (Task.TRAIN, Task.EVALUATE):
            return
        removed = self.folder / REMOVED
        if task == Task.TRAIN and round == 0:
            removed.unlink(missing_ok=True)
        if removed.exists():
            found, hint = f"removed: a site keeps those of the newest {KEPT_RUNS} runs", "start a run of another name"
            raise MessageRefused([Problem("state", found=found, expected="this run's state", hint=hint)])
        last = round - 1 if task == Task.TRAIN else round
        stored = [number for number in self._stored() if number <= last]
        wanted = max(stored, default=PREPARED)
        if wanted == self.at or not stored:
            return
        self.at = None
        self.holder.load_state_dict(safe_load(self._path(wanted)))
        self.at = wanted
        logger.info("went to the state after round %d", wanted)

    def after(self, task: Task, round: int, keep: Iterable[int] = ()) -> None:
        """Stores the state that ``task`` of ``round`` left behind, and removes those that nobody wants any more.

        Args:
            task: what was done.
            round: of it.
            keep: rounds whose states the server may ask for again.
        """
        if task not in (Task.TRAIN, Task.PREPARE):
            return
        number = round if task == Task.TRAIN else PREPARED
        state = self.holder.state_dict()
        if state:
            with atomic_write(self._path(number)) as stream:
                tensor_file.write_state(stream, state)
        self.at = number
        if number == PREPARED:
            return  # a run that goes on is prepared again, and its states are still wanted
        stored = self._stored()
        # a round that this site missed is stood for by the newest one before it
        wanted = {max((other for other in stored if other <= asked), default=PREPARED) for asked in (*keep, number - 1)}
        for other in stored:
            if other not in wanted | {PREPARED, number}:
                self._path(other).unlink(missing_ok=True)

    def failed(self) -> None:
        """A task failed half-way: where the holder stands is not known."""
        self.at = None

    def _stored(self) -> list[int]:
        return sorted(int(path.stem) for path in self.folder.glob("*.safetensors"))

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:03d}.safetensors"
