"""Options: the plain values on top of a bundle's files, which file each belongs to, and what reads it.

What each does and which values it takes is in ``options.json``, in the words of JSON Schema: the tables of
``docs/options.md``, the help of commands and the check are made of it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from samfed_monai.config.bundles import packaged_bundles
from samfed_monai.config.parse import WORKFLOWS, BundleConfig, is_code, is_note
from samfed_monai.core.errors import Refused
from samfed_monai.core.io import read_json

Schema = dict[str, Any]
"""JSON Schema of one value."""

LARGEST = 2**53
"""Beyond it JSON's numbers lose digits, and torch takes none from 2**63."""


def is_plain(value: Any) -> bool:
    """Text, number, true, false, null, or a list of these."""
    if isinstance(value, list):
        return all(is_plain(item) and not isinstance(item, list) for item in value)
    return value is None or isinstance(value, (str, bool, int, float))


def is_value(value: Any) -> bool:
    """A plain value that is no expression and refers to nothing."""
    return is_plain(value) and not any(map(is_code, value if isinstance(value, list) else [value]))


def options_of(content: Mapping[str, Any]) -> dict[str, Any]:
    """The options of one file: the plain values on top, down to ``imports`` or to the first object.

    An expression below the last plain value belongs to the computed part; one amid the plain values is an option with
    code in it. An ``imports`` above all options is stepped over, and so are notes (:func:`is_note`).
    """
    options: dict[str, Any] = {}
    waiting: dict[str, Any] = {}
    for name, value in content.items():
        if isinstance(value, dict) or (name == "imports" and options):
            break
        if name == "imports" or is_note(name) or not is_plain(value):
            continue
        waiting[name] = value
        if is_value(value):
            options |= waiting
            waiting = {}
    return options


@functools.cache
def option_tables() -> dict[str, dict[str, dict[str, Schema]]]:
    """By file, table of ``docs/options.md`` and id: keywords of JSON Schema, of which ``description`` is Markdown."""
    content: dict[str, dict[str, dict[str, Schema]]] = read_json(Path(__file__).with_name("options.json"))
    return content


def options_in(file: str) -> dict[str, Schema]:
    """Keywords of each documented option of a file."""
    return {name: keywords for table in option_tables().get(file, {}).values() for name, keywords in table.items()}


def shipped(file: str) -> list[Any]:
    """What the packaged bundles' own files of that name hold; one that cannot be read is reported elsewhere."""
    found: list[Any] = []
    for folder in packaged_bundles().values():
        path = folder / "configs" / file
        with suppress(Refused, OSError):
            found.append(_read(path, path.stat().st_mtime_ns))
    return found


@functools.lru_cache(maxsize=64)
def _read(path: Path, changed: int) -> Any:
    """A packaged file, read once; ``changed`` is its time, for a checkout in which it is edited."""
    return read_json(path)


def shipped_options(file: str) -> dict[str, Any]:
    """Options of the packaged bundles' own file of that name, with the values they ship with."""
    return {name: value for content in shipped(file) for name, value in options_of(content).items()}


def shipped_plain(file: str) -> set[str]:
    """Ids on top of the packaged bundles' own file of that name whose value there is plain, wherever they are."""
    items = (item for content in shipped(file) for item in content.items())
    return {name for name, value in items if is_value(value) and not is_note(name)} - {"imports"}


def all_options(config: BundleConfig) -> set[str]:
    """Names of the options of every file of a configuration, the rarely used ones below ``imports`` too."""
    files = [(layer, pairs) for layer, pairs in config.layers if layer != config.source]
    return {name for layer, pairs in files for name in (*options_of(pairs), *shipped_plain(layer))} | OPTIONAL


def home_of(name: str, config: BundleConfig) -> str:
    """Where an id that a workflow does not have belongs, as a hint; empty where it has it, or no packaged file."""
    files = [config.layers[index][0] for index in config.own]
    homes = [each[-1] for each in WORKFLOWS.values() if each[-1] not in files and name in shipped_plain(each[-1])]
    if not homes or any(name in shipped_plain(file) for file in files):
        return ""
    here = f"{TEACHER_FILE} (here: --{TEACHER}#{name})" if config.federates else TEACHER_FILE
    return f"known in {' and '.join(here if home == TEACHER_FILE else home for home in homes)}"


COMPONENT_KEYS = frozenset({"_target_", "_disabled_", "_requires_", "_desc_", "_mode_"})
"""Keys of a component that MONAI reads itself; they are no arguments."""

MONAI_IDS = frozenset({"imports", "initialize", "run", "finalize"})
"""Ids on top of a file that MONAI's own command reads."""

TEACHER, TEACHER_FILE = "teacher", WORKFLOWS["teacher"][-1]
SITES = "sites"
GROUPS = frozenset({TEACHER, SITES})
"""Groups of ``federate.json``: ids of ``teacher.json``, and for a site, those of ``train.json``."""

OPTIONAL = frozenset(
    {"mixed_networks", "personal", "server_network", "sharing", "statistics", "strategy", "warm_start"}
)
"""Ids on top of ``train.json`` that a federation reads where they are there; the file need not spell them out."""

FEDERATION_ALONE = frozenset({"score"})
"""Ids on top of ``teacher.json`` that a federation reads and ``samfed teach`` does not."""

USE_OF_TEACHER = frozenset({"base", "adapt", "checkpoint", "size", "views", "bf16"})
"""Ids on top of ``teacher.json`` that say how an adapter that is there is used."""

TRAINING_READS = (
    OPTIONAL
    | {"train", "unlabelled", "validate", "test", "network_def", "network_name", "encoder_weights"}
    | {"image_size", "batch_size", "classes", "limit", "oracle", "teacher_adapt"}
)
"""Ids on top of ``train.json`` that a federation asks for by their names."""

TEACHER_READS = FEDERATION_ALONE | USE_OF_TEACHER | {"fit", "public_limit", "start_from"}
"""Ids on top of ``teacher.json`` that a federation asks for by their names."""

OF_VARIANTS = frozenset({"mixed_networks", "server_network", "sharing", "statistics"})
"""Of these, those that only some variants read, which declare them; elsewhere the command line may not set them."""

GIVEN = frozenset(
    {
        *("bundle_root", "datalist", "data_root", "output_dir", "seed", "site", "store_dir", "teacher_sha256"),
        *("epochs", "val_interval"),  # a round is one epoch, and every round is validated
    }
)
"""Ids of ``train.json`` that a federated job sets for every site."""

TEACHER_GIVEN = frozenset({"bundle_root", "datalist", "data_root", "output", "adapt"})
"""The same of ``teacher.json``, whatever ``teacher`` says; ``adapt`` is ``teacher_adapt`` of ``train.json``."""
