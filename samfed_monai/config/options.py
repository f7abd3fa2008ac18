"""Options: the plain values at the top of a bundle's files, the file of each, and who receives it.

``options.json`` describes each option in JSON Schema; the tables of ``docs/options.md``, the help of commands and the
check use it.

``federate.json`` is a layer over ``train.json`` and the variant. A top-level id that these define belongs to the sites'
training, and a federation's value of it is sent to all sites. The others are the server's.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from samfed_monai.config import parse
from samfed_monai.config.bundles import packaged_bundles
from samfed_monai.config.targets import Schema
from samfed_monai.core.errors import Refused
from samfed_monai.core.io import read_json

LARGEST = 2**53
"""Largest number in a configuration: larger JSON numbers lose digits, and torch accepts none from 2**63."""


def is_plain(value: Any) -> bool:
    """Whether a value is text, a number, true, false, null, or a list of these."""
    if isinstance(value, list):
        return all(is_plain(item) and not isinstance(item, list) for item in value)
    return value is None or isinstance(value, (str, bool, int, float))


def is_value(value: Any) -> bool:
    """Whether a value is plain and is neither an expression nor a reference."""
    return is_plain(value) and not any(map(parse.is_code, value if isinstance(value, list) else [value]))


def options_of(content: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options of one file: the top-level plain values above ``imports`` or the first object.

    An expression below the last plain value belongs to the computed part; one between plain values is an option with
    code in it. An ``imports`` above all options is skipped, and so are notes (:func:`is_note`).
    """
    above: list[str] = []
    for name, value in content.items():
        if isinstance(value, dict) or (name == "imports" and any(is_value(content[each]) for each in above)):
            break
        if name != "imports" and not parse.is_note(name) and is_plain(value):
            above.append(name)
    while above and not is_value(content[above[-1]]):
        above.pop()
    return {name: content[name] for name in above}


@functools.cache
def option_tables() -> dict[str, dict[str, dict[str, Schema]]]:
    """JSON Schema keywords by file, table of ``docs/options.md`` and id; ``description`` is Markdown."""
    content: dict[str, dict[str, dict[str, Schema]]] = read_json(Path(__file__).with_name("options.json"))
    return content


def options_in(file: str) -> dict[str, Schema]:
    """JSON Schema keywords of each documented option of a file."""
    return {name: keywords for table in option_tables().get(file, {}).values() for name, keywords in table.items()}


@functools.cache
def shipped(file: str) -> list[Any]:
    """Contents of the packaged bundles' files of that name; unreadable files are reported elsewhere."""
    contents: list[Any] = []
    for folder in packaged_bundles().values():
        with suppress(Refused):
            contents.append(read_json(folder / "configs" / file))
    return contents


def shipped_plain(file: str) -> set[str]:
    """Top-level ids with plain values in the packaged bundles' files of that name, at any position."""
    items = (item for content in shipped(file) for item in content.items())
    return {name for name, value in items if is_value(value) and not parse.is_note(name)} - {"imports"}


def all_options(config: parse.BundleConfig) -> set[str]:
    """Names of the options of every file of a configuration, including rarely used ones below ``imports``."""
    files = [layer for index, layer in enumerate(config.layers) if not config.is_given(index)]
    return {name for file, pairs in files for name in (*options_of(pairs), *shipped_plain(file))} | OPTIONAL


MONAI_IDS = frozenset({"imports", "initialize", "run", "finalize"})
"""Top-level ids that MONAI's own command reads."""

TEACHER, TEACHER_FILE = "teacher", parse.WORKFLOWS["teacher"][-1]
GROUPS = frozenset({TEACHER, parse.SITES})
"""Groups of ``federate.json``: ids of ``teacher.json``, and ids of ``train.json`` for each site."""

OPTIONAL = frozenset(
    {"mixed_networks", "personal", "server_network", "client_algorithm", "statistics", "strategy", "warm_start"}
)
"""Optional top-level ids of ``train.json`` that a federation reads."""

FEDERATION_ONLY = frozenset({"score"})
"""Top-level ids of ``teacher.json`` that a federation reads and ``samfed teach`` does not."""

USE_OF_TEACHER = frozenset({"base", "adapt", "checkpoint", "size", "views", "bf16"})
"""Top-level ids of ``teacher.json`` for the use of an existing adapter."""

JOB_IDS = frozenset(
    {
        *("bundle_root", "datalist", "data_root", "output_dir", "seed", "site", "store_dir", "teacher_sha256"),
        *("epochs", "val_interval"),  # a round is one epoch, and every round is validated
    }
)
"""Ids of ``train.json`` that a federated job sets for every site."""


def training_layers(config: parse.BundleConfig) -> list[parse.Layer]:
    """Returns the layers of a federation, restricted to the ids of the sites' training."""
    base = config.below(config.base)
    read = {target[0] for _, text in parse.walk(base) for target in parse.references(text)}
    training = (base.keys() | read | OPTIONAL) - GROUPS - JOB_IDS - MONAI_IDS
    above = [
        (name, {key: value for key, value in pairs.items() if parse.split_id(key)[0] in training})
        for name, pairs in config.layers[config.base :]
    ]
    return [*config.layers[: config.base], *above]


def training_values(config: parse.BundleConfig) -> dict[str, Any]:
    """Returns the ids of the sites' training that a federation's own layers set, with their values.

    A reference to an id of the server (``"local_steps": "@rounds"``) is replaced by its value.
    """
    layers = training_layers(config)
    training = {parse.split_id(key)[0] for _, pairs in layers for key in pairs}
    values = _merged_pairs(layers[config.base :])
    for name, value in values.items():
        if not any(target[0] in training for target in parse.references(value)):
            values[name] = parse.resolve(config.content, value)
    return values


def _merged_pairs(layers: Iterable[parse.Layer]) -> dict[str, Any]:
    """Merges the pairs of several layers; a value replaces everything that lower layers set inside it."""
    values: dict[str, Any] = {}
    for key, value in (pair for _, pairs in layers for pair in pairs.items()):
        parts = parse.split_id(key)
        values = {name: each for name, each in values.items() if parse.split_id(name)[: len(parts)] != parts}
        values[key if key.startswith("+") else parse.join_id(parts)] = value
    return values


def groups_of(config: parse.BundleConfig) -> dict[str, dict[str, Any]]:
    """Merges ``teacher`` and ``sites`` over all layers; sites whose choices are not an object are left out."""
    site_values = {site: _merged_pairs(config.group_layers((parse.SITES, site))) for site in config.sites}
    return {TEACHER: _merged_pairs(config.group_layers((TEACHER,))), parse.SITES: site_values}


def pairs_for_monai(config: parse.BundleConfig) -> dict[str, Any]:
    """Returns the overrides of a workflow in the form that MONAI's parser accepts.

    MONAI sets an id only if its parents exist, but ``teacher#train#handlers`` has no parent ``train`` in
    ``federate.json``, since the ids in a group are those of another workflow. MONAI would also build every component
    in a group, as it does for everything below an id. So each group is passed whole, as the result of a function.
    ``job#train`` holds the values that are sent to the sites.
    """
    overrides = dict(config.layers[-1][1])
    if not config.federates:
        return overrides
    pairs = {key: value for key, value in overrides.items() if parse.split_id(key)[0] not in GROUPS}
    groups = groups_of(config) | {"job#train": training_values(config)}
    # components that return the values, so that MONAI builds nothing inside them
    return pairs | {name: {"_target_": functools.partial(copy.deepcopy, value)} for name, value in groups.items()}
