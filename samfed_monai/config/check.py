"""The whole check of a bundle: every problem of every file at once, before a single component is built."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from samfed_monai.config.components import ComponentCheck, check_override_kinds
from samfed_monai.config.files import check_files
from samfed_monai.config.knobs import check_knobs
from samfed_monai.config.layers import WORKFLOWS, BundleConfig, variant_file, workflow_files
from samfed_monai.config.logging_file import check_logging
from samfed_monai.config.spelling import check_override_ids, check_references, check_unread_knobs
from samfed_monai.errors import Problem, Refused


def check_bundle(
    bundle_root: str | Path,
    workflow: str,
    *,
    variant: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    files: Sequence[Path] | None = None,
    ready: bool = True,
) -> list[Problem]:
    """Every problem of one workflow of a bundle; nothing of the bundle is evaluated or instantiated.

    It does not look at images (see :func:`samfed_monai.data.check_datalist`) and does not judge whether values are
    wise, only whether they are known, of the right kind, and lead somewhere.

    Args:
        bundle_root: folder that holds ``configs/``.
        workflow: ``train``, ``teacher``, ``federate``, ``evaluate`` or ``inference``.
        variant: name of a file in ``configs/variants``; ``samfed`` and ``None`` are the bundle as it is.
        overrides: ids and values of the command line.
        files: config files to check instead of the workflow's own.
        ready: whether the workflow is about to run, so that all it names on disk must be there. ``False`` only looks
            at paths and hashes that somebody changed from what the packaged bundle ships.
    """
    root = Path(bundle_root)
    try:
        own = workflow_files(root, workflow)
        base = list(files) if files is not None else own
        layers = [*base, *_variant_files(root, variant if workflow != "federate" else None)]
    except Refused as refused:
        return refused.problems
    base_layers = max(1, sum(path.name in {name.name for name in own} for path in base))
    problems = [*check_logging(root), *_check_layers(root, layers, overrides, base_layers, ready)]
    if workflow == "federate":  # the sites of a federated run train with train.json and the variant on top of it
        chosen = variant or (overrides or {}).get("variant")
        problems += check_bundle(root, "train", variant=chosen if isinstance(chosen, str) else None, ready=False)
    return list(dict.fromkeys(problems))


def _variant_files(root: Path, variant: str | None) -> list[Path]:
    if variant is None or (variant == "samfed" and not (root / "configs" / "variants" / "samfed.json").is_file()):
        return []
    return [variant_file(root, variant)]


def _check_layers(
    root: Path, files: Sequence[Path], overrides: Mapping[str, Any] | None, base_layers: int, ready: bool
) -> list[Problem]:
    config = BundleConfig(files, overrides)
    if config.problems:  # the rest would only guess at what the unreadable file says
        return config.problems
    components = ComponentCheck(config)
    problems: list[Problem] = []
    for check in (
        lambda: check_override_ids(config, base_layers),
        lambda: check_knobs(config),
        lambda: check_references(config),
        lambda: check_unread_knobs(config),
        components.problems,
        lambda: check_override_kinds(config, base_layers, components.judged),
        lambda: check_files(config, root, ready=ready),
    ):
        told = {problem.where for problem in problems}
        problems += [problem for problem in check() if problem.where not in told]  # one place is told about once
    return problems


def workflows_of(bundle_root: str | Path) -> list[str]:
    """Workflows whose files a bundle has, in the order of :data:`WORKFLOWS`."""
    folder = Path(bundle_root) / "configs"
    return [name for name, files in WORKFLOWS.items() if (folder / files[-1]).is_file()]
