"""From a bundle's ``federate.json`` and the command line to a plan in which every site is named."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samfed_monai.config import find_bundle
from samfed_monai.config.check import check_bundle
from samfed_monai.core.errors import Problem, Problems, Refused
from samfed_monai.data import DataList
from samfed_monai.federation.bundle_job import federate_parser, job_of
from samfed_monai.federation.plan import Places, Plan


@dataclass(frozen=True)
class Planned:
    """What a command line asks for.

    Args:
        plan: every site is named.
        places: on this machine.
        sites: names of all sites, those that take no part included.
        datalist: the whole list; ``None`` where none was given and ``federate.json`` names the sites.
        report: the bundle's own report component.
    """

    plan: Plan
    places: Places
    sites: tuple[str, ...]
    datalist: DataList | None
    report: Any


def planned(bundle: str | Path, overrides: Mapping[str, Any], *, here: bool = True) -> Planned:
    """Checks the bundle with its overrides and plans the run, without running anything.

    Args:
        bundle: folder or packaged name.
        overrides: ids of ``federate.json`` and the values that the command line gives them.
        here: whether it will run on this machine, so that checkpoints and images must be here.

    Raises:
        Refused: with every problem of the bundle, the overrides or the list.
    """
    from samfed_monai.federation.stages.cast import Cast

    root = find_bundle(bundle)
    problems = check_bundle(root, "federate", overrides=dict(overrides), ready=here)
    if problems:
        raise Refused(problems)
    parser = federate_parser(root, overrides)
    job = job_of(parser)
    _require_no_places(job.places, here=here)
    has_list = bool(overrides.get("datalist"))
    if not has_list and not job.plan.sites:
        mend = "give --datalist, or name every site in federate.json -> sites"
        raise Refused([Problem("sites", found="no list and no names", expected="the federation's sites", mend=mend)])
    datalist = DataList.load(job.places.datalist) if has_list else None
    cast = Cast.of(job.plan, job.places, datalist or DataList("", []))
    plan = cast.settled(job.plan)
    return Planned(
        plan=plan,
        places=job.places,
        sites=tuple(sorted((*cast.sites, *cast.unseen))),
        datalist=datalist,
        report=lambda: parser.get_parsed_content("report"),
    )


def _require_no_places(places: Places, *, here: bool) -> None:
    # a job says nothing of where a site keeps things, and silence about a place that was asked for would be a surprise
    problems, expected = Problems(), "nothing: a site's own file says where it keeps things"
    mend = "set `device`, `weights` or `cache_dir` in samfed_site.json of that participant (docs/deploy.md)"
    asked = {f"sites#{site}": there for site, there in places.sites.items()}
    asked |= {"client": places.client, "teacher": places.teacher}
    for where, there in sorted(asked.items()):
        for name in sorted(there):
            if not (here and where == "client" and name == "device"):  # that one goes into every file that is written
                problems.add(f"federate.json -> {where}#{name}", found="a place", expected=expected, mend=mend)
    problems.refuse_if_any()
