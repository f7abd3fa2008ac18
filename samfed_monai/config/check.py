"""The whole check of a bundle: every problem of every file at once, before a single component is built."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from samfed_monai.config.components import ComponentCheck, check_override_kinds
from samfed_monai.config.files import check_base_weights, check_files
from samfed_monai.config.ids import MISSING, flat, lookup, references
from samfed_monai.config.knobs import check_knobs
from samfed_monai.config.layers import WORKFLOWS, BundleConfig, workflow_files
from samfed_monai.config.logging_file import check_logging
from samfed_monai.config.spelling import SITES, check_override_ids, check_references, check_unread_knobs
from samfed_monai.config.variants import variant_files
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
        variant: name of a variant (see :func:`samfed_monai.config.known_variants`); ``None`` is the bundle as it is.
        overrides: ids and values of the command line.
        files: config files to check instead of the workflow's own.
        ready: whether the workflow is about to run, so that all it names on disk must be there. ``False`` only looks
            at paths and hashes that somebody changed from what the packaged bundle ships.
    """
    root = Path(bundle_root)
    federate = workflow == "federate"
    overrides = {**(overrides or {}), **({"variant": variant} if federate and variant else {})}
    try:
        own = workflow_files(root, workflow)
        base = list(files) if files is not None else own
        layers = [*base, *_variant_files(root, None if federate else variant)]
    except Refused as refused:
        return refused.problems
    config = BundleConfig(layers, overrides)
    base_layers = max(1, sum(path.name in {name.name for name in own} for path in base))
    problems = [*check_logging(root), *_problems(config, root, base_layers, ready)]
    if federate and not config.problems:
        problems += _inside_a_federation(config, root, ready)
    return list(dict.fromkeys(problems))


def _variant_files(root: Path, variant: Any) -> list[Path]:
    return [] if variant is None else variant_files(root, variant)


def _problems(config: BundleConfig, root: Path, base_layers: int, ready: bool) -> list[Problem]:
    if config.problems:  # the rest would only guess at what the unreadable file says
        return config.problems
    components = ComponentCheck(config)
    problems: list[Problem] = []
    for check in (
        lambda: check_override_ids(config, base_layers),
        lambda: check_knobs(config),
        lambda: check_references(config),
        lambda: check_unread_knobs(config, base_layers),
        components.problems,
        lambda: check_override_kinds(config, base_layers, components.judged),
        lambda: check_files(config, root, ready=ready),
    ):
        told = {problem.where for problem in problems}
        problems += [problem for problem in check() if problem.where not in told]  # one place is told about once
    return problems


def _inside_a_federation(config: BundleConfig, root: Path, ready: bool) -> list[Problem]:
    """The workflows that a federated job runs: ``train.json`` with the variant and the values of ``client`` on top, and
    with those of each site; ``teacher.json`` with those of ``teacher``; and SAM's weights, if there is a teacher."""
    try:
        variant = _variant_files(root, config.content.get("variant"))
    except Refused as refused:
        return refused.problems
    parts: dict[str, BundleConfig] = {}
    problems: list[Problem] = []
    for group, workflow, extra in (("client", "train", variant), ("teacher", "teacher", [])):
        own = workflow_files(root, workflow)
        if all(path.is_file() for path in own):
            source = f"{config.layers[0][0]} -> {group}"
            parts[group] = BundleConfig([*own, *extra], _resolved(config, group), source)
            problems += _problems(parts[group], root, len(own), ready=False)
    problems += _of_sites(config, root, variant) if "client" in parts else []
    wanted = ready and "client" in parts and parts["client"].content.get("teacher_adapt", "off") != "off"
    if wanted and "teacher" in parts:
        problems += check_base_weights(parts["teacher"].content, root)
    return problems


def _of_sites(config: BundleConfig, root: Path, variant: Sequence[Path]) -> list[Problem]:
    """``train.json`` as each site changes it; ``network`` is ``network_name`` there."""
    own, problems = workflow_files(root, "train"), list[Problem]()
    sites = config.content.get(SITES)
    for site, choices in sites.items() if isinstance(sites, dict) else ():
        where = f"{config.layers[0][0]} -> {SITES}#{site}"
        if not isinstance(choices, dict):
            expected = 'an object, for instance {"network": "basic_unet"}'
            problems.append(Problem(where, found=type(choices).__name__, expected=expected))
            continue
        pairs = {("network_name" if key == "network" else key): value for key, value in choices.items()}
        problems += _problems(BundleConfig([*own, *variant], flat(pairs), where), root, len(own), ready=False)
    return problems


def _resolved(config: BundleConfig, group: str) -> dict[str, Any]:
    """A group of overrides with its ``@knob`` references looked up; those that lead nowhere are told elsewhere."""
    pairs = config.content.get(group)
    resolved: dict[str, Any] = {}
    for key, value in flat(pairs).items() if isinstance(pairs, dict) else ():
        targets = references(value) if isinstance(value, str) and value.startswith("@") else []
        found = lookup(config.content, targets[0]) if targets else value
        if found is not MISSING and not (isinstance(found, str) and found.startswith(("$", "@", "%"))):
            resolved[key] = found
    return resolved


def workflows_of(bundle_root: str | Path) -> list[str]:
    """Workflows whose files a bundle has, in the order of :data:`WORKFLOWS`."""
    folder = Path(bundle_root) / "configs"
    return [name for name, files in WORKFLOWS.items() if (folder / files[-1]).is_file()]
