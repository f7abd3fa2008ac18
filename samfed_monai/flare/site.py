"""A site's part of a run on FLARE: what it makes of the plan that came with the job and of its own file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from samfed_monai.config import find_bundle
from samfed_monai.config.bundles import packaged_bundle
from samfed_monai.config.strict import strict_problems
from samfed_monai.core.errors import Problem, Refused
from samfed_monai.core.io import read_json
from samfed_monai.federation.plan import Places, Plan
from samfed_monai.flare.site_file import SiteFile
from samfed_monai.privacy.rules import PrivacyFloor
from samfed_monai.protocol.statistics import StatisticKind

if TYPE_CHECKING:
    from samfed_monai.federation.site import Site


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
    """Reads a plan that came with a job; nothing in it may be an expression, a path, or a class that is not listed.

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
        masks_from=files.masks_from,
        train={"device": files.device} if files.device else {},
    )
