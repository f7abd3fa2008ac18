"""Which files a workflow merges, and which values of a federation's layers are for its sites.

``federate.json`` is a layer over ``train.json`` and the variant: an id on top that these define is one of the sites'
training, and what a federation sets of it is sent to all sites. The others are the server's.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from samfed_monai.config.options import GIVEN, GROUPS, MONAI_IDS, OPTIONAL, SITES
from samfed_monai.config.parse import (
    MISSING,
    BundleConfig,
    follow,
    join_id,
    references,
    split_id,
    walk,
    workflow_files,
)
from samfed_monai.config.variants import variant_files
from samfed_monai.core.errors import Refused
from samfed_monai.core.io import read_json


def layered(
    bundle_root: str | Path,
    workflow: str,
    overrides: Mapping[str, Any] | None = None,
    *,
    variant: str | None = None,
    files: Sequence[Path] | None = None,
) -> tuple[list[Path], int]:
    """Files of a workflow in merge order, the variant's just above the first; and how many the first and those are.

    Args:
        bundle_root: folder of the bundle.
        workflow: a name in :data:`samfed_monai.config.WORKFLOWS`.
        overrides: ids and values of the command line; a federation's ``variant`` is one of them, or one of its file.
        variant: of any other workflow; ``None`` is the bundle as it is.
        files: instead of the workflow's own.

    Raises:
        Refused: no such workflow or variant.
    """
    root, first, *others = Path(bundle_root), *(files or workflow_files(Path(bundle_root), workflow))
    if workflow == "federate":
        variant = (overrides or {}).get("variant", variant) or _named_in(others)
    above = [] if variant is None else variant_files(root, variant)
    places = {path.resolve() for path in above}
    return [first, *above, *(path for path in others if path.resolve() not in places)], 1 + len(above)


def _named_in(files: Sequence[Path]) -> Any:
    """The variant that a federation's files name; a file that cannot be read is reported where it is merged."""
    name = None
    for path in files:
        with suppress(Refused, AttributeError):
            name = read_json(path).get("variant", name)
    return name


def training_layers(config: BundleConfig) -> list[tuple[str, dict[str, Any]]]:
    """The layers of a federation with the ids of the sites' training alone."""
    base = config.below(config.base)
    read = {target[0] for _, text in walk(base) if isinstance(text, str) for target in references(text)}
    training = (base.keys() | read | OPTIONAL) - GROUPS
    above = [
        (name, {key: value for key, value in pairs.items() if split_id(key)[0] in training - GIVEN - MONAI_IDS})
        for name, pairs in config.layers[config.base :]
    ]
    return [*config.layers[: config.base], *above]


def training_values(config: BundleConfig) -> dict[str, Any]:
    """Ids of the sites' training that a federation's own layers set, with their values.

    A reference to an id of the server (``"local_steps": "@rounds"``) is replaced by what it leads to.
    """
    layers = training_layers(config)
    training = BundleConfig.of_layers(layers).content
    values: dict[str, Any] = {}
    for _, pairs in layers[config.base :]:
        for key, value in pairs.items():
            replaced = [name for name in values if split_id(name)[: len(split_id(key))] == split_id(key)]
            values = {name: each for name, each in values.items() if name not in replaced}
            values[join_id(split_id(key)) if not key.startswith("+") else key] = _sent(config.content, training, value)
    return values


def _sent(content: Mapping[str, Any], training: Mapping[str, Any], value: Any) -> Any:
    targets = references(value) if isinstance(value, str) and value.startswith("@") else []
    if not targets or targets[0][0] in training:
        return value
    _, there = follow(content, (), value)
    return value if there is MISSING else there


def pairs_for_monai(config: BundleConfig) -> dict[str, Any]:
    """Overrides of a workflow as MONAI's parser takes them.

    MONAI sets an id only where everything above it exists, and ``teacher#train#handlers`` has no ``train`` above it in
    ``federate.json``: the ids in a group are those of another workflow. Nor may MONAI build a component that is in
    one, which it does with whatever it finds below an id. So each group is whole, and the result of a function.
    ``job#train`` is what the sites are sent.
    """
    overrides = dict(config.layers[-1][1])
    if not config.federates:
        return overrides
    pairs = {key: value for key, value in overrides.items() if split_id(key)[0] not in GROUPS}
    whole = {group: as_it_is(content) for group, content in groups_of(config).items()}
    return pairs | whole | {"job#train": as_it_is(training_values(config))}


def groups_of(config: BundleConfig) -> dict[str, dict[str, Any]]:
    """``teacher`` and ``sites`` as all layers together set them, ids in them as they are spelt.

    References to ids of the federation are replaced by what they lead to; those inside components are for another
    workflow.
    """
    found: dict[str, dict[str, Any]] = {group: {} for group in sorted(GROUPS)}
    for _, pairs in config.layers:
        for key, value in pairs.items():
            group, *inside = split_id(key)
            if group not in GROUPS:
                continue
            if not inside:
                found[group] = dict(value) if isinstance(value, Mapping) else {}
            elif group == SITES and len(inside) > 1:
                site, *inside = inside
                found[SITES][site] = {**(found[SITES].get(site) or {}), join_id(inside): value}
            else:
                found[group][join_id(inside)] = value
    return {group: _looked_up(config.content, content) for group, content in found.items()}


def as_it_is(value: Any) -> dict[str, Any]:
    """A component of which MONAI makes ``value``, and nothing of what is in it."""
    return {"_target_": functools.partial(copy.deepcopy, value)}


def _looked_up(content: Mapping[str, Any], value: Any) -> Any:
    if isinstance(value, Mapping) and "_target_" not in value:
        return {name: _looked_up(content, part) for name, part in value.items()}
    _, there = follow(content, (), value)
    return value if there is MISSING else there
