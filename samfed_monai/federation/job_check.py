"""What a run would refuse of its settings before it reads an image or a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from samfed_monai.core.errors import Problem, Problems, Refused
from samfed_monai.data import DataList
from samfed_monai.federation.asking import quorum_problems
from samfed_monai.federation.bundle_job import federate_parser, job_of
from samfed_monai.federation.privacy import Privacy
from samfed_monai.federation.stages.cast import Cast
from samfed_monai.federation.stages.teacher import TeacherStage
from samfed_monai.federation.stages.workflow_config import client_config


def check_job(bundle_root: str | Path, overrides: Mapping[str, Any], datalist: DataList | None) -> list[Problem]:
    """Builds what a run of ``federate.json`` consists of, empty, and throws it away.

    Components of the bundle are instantiated: it is for bundles that hold no code (``samfed check --strict``). A
    variant that trains SAM itself is not built, for which its weights would have to be here.

    Args:
        bundle_root: folder of a bundle in which :func:`samfed_monai.config.check_bundle` found no problem.
        overrides: ids of ``federate.json`` to values.
        datalist: the frozen list; ``None`` takes the sites of ``federate.json``, or imagines one.
    """
    try:
        job = job_of(federate_parser(Path(bundle_root), overrides))
    except Refused as refused:
        return refused.problems
    plan, problems = job.plan, Problems()
    if datalist is None and not plan.sites:
        plan = plan.with_sites({"a site": {}}, plan.unseen)
    config = client_config(job.places.bundle_root, plan.variant, {**plan.client, **job.places.overrides()})
    with problems.collected():
        Privacy.from_json(plan.privacy)
    with problems.collected():
        cast = Cast.of(plan, job.places, datalist or DataList("", []))
        if datalist is not None:
            sites, alone = len(cast.sites), plan.allow_single_site
            problems.extend(quorum_problems(sites, plan.quorum, allow_single_site=alone))
        if not config.optional_id("sam_network"):
            cast.rehearse()
    with problems.collected():
        TeacherStage.of(plan, job.places).rehearse(config.value("teacher_adapt"))
    return list(problems)
