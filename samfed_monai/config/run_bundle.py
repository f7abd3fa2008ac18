"""Runs one workflow of a bundle in this process: checked first, then MONAI's own ``ConfigWorkflow``."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from samfed_monai.config.bundles import find_bundle
from samfed_monai.config.check import check_bundle
from samfed_monai.config.layers import layered, pairs_for_monai
from samfed_monai.config.overrides import normal_ids
from samfed_monai.config.parse import BundleConfig
from samfed_monai.config.wrapped_errors import unwrapped
from samfed_monai.core.errors import Refused, refused

WORKFLOW_TYPES = {"train": "train", "teacher": None, "federate": None, "evaluate": "eval", "inference": "infer"}
"""What MONAI calls each workflow; ``None`` has only the properties that every bundle has."""


def run_workflow(
    bundle: str | Path,
    workflow: str,
    overrides: Mapping[str, Any],
    *,
    variant: str | None = None,
    asked: Collection[str] | None = None,
    prepared: Callable[[Any], None] = lambda job: None,
) -> Any:
    """Checks a workflow with its overrides and runs it: initialize, run, finalize.

    MONAI's logging configuration is left alone and its warning that a bundle may run code is silenced: the bundle has
    passed the check, which is what the warning asks for.

    Args:
        bundle: folder or packaged name.
        workflow: a name in :data:`samfed_monai.config.WORKFLOWS`.
        overrides: ids and values.
        variant: variant, laid on the workflow's first file; not for ``federate``, where it is an option.
        asked: ids of ``overrides`` that the user gave, which must be read; ``None``: all of them.
        prepared: called with MONAI's workflow when it is initialized, to attach handlers to its ``evaluator``.

    Returns:
        what the expressions of the bundle's ``run`` returned.

    Raises:
        Refused: with every problem of the bundle, or what a component refused.
        Stopped: as raised inside, unwrapped from MONAI's own error.
    """
    root = find_bundle(bundle)
    problems = check_bundle(root, workflow, variant=variant, overrides=overrides, asked=asked)
    if problems:
        raise Refused(problems)
    given = {"bundle_root": str(root), **normal_ids(dict(overrides))}
    files, base = layered(root, workflow, given, variant=variant)
    return _run(root, files, workflow, pairs_for_monai(BundleConfig(files, given, base=base)), prepared)


def _run(
    root: Path, files: list[Path], workflow: str, overrides: Mapping[str, Any], prepared: Callable[[Any], None]
) -> list[Any]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="parsing config_file")
        from samfed_monai.config.monai_parser import ConfigWorkflow
    logging.getLogger("monai.bundle.workflows").setLevel(logging.ERROR)
    job = ConfigWorkflow(
        config_file=[str(path) for path in files],
        meta_file=str(root / "configs" / "metadata.json"),
        logging_file=False,
        workflow_type=WORKFLOW_TYPES[workflow],
        **overrides,
    )
    if "run" not in job.parser:
        raise refused(files[-1].name, "none", "an id run, which says what the workflow does", "add it")
    with unwrapped(lambda: job.parser):
        job.initialize()
        prepared(job)
        returned: list[Any] = job.run()
        job.finalize()
    return returned
