"""What a run of a comparison depends on, as hashes: a finished run is kept only while they stay the same."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from samfed_monai.config.ids import flat, join_id, split_id
from samfed_monai.config.layers import BundleConfig, workflow_files
from samfed_monai.config.variants import variant_files
from samfed_monai.errors import Refused
from samfed_monai.io import canonical_hash, read_json, sha256_file


def configs_of(bundle: Path, variant: str, overrides: Mapping[str, Any]) -> list[Path]:
    """Configuration files that a federation of this variant reads; those that are missing are left out.

    ``federate.json``, ``train.json``, the variant's files, and ``teacher.json`` unless the variant has no teacher.
    Other variants, ``evaluate.json`` and ``inference.json`` are not read by it, and MONAI reads ``metadata.json`` for
    other purposes than to compute.
    """
    train = [path for path in workflow_files(bundle, "train") if path.is_file()]
    with suppress(Refused):  # told when the bundle is checked
        train += variant_files(bundle, variant)
    federate = [path for path in workflow_files(bundle, "federate") if path.is_file()]
    given = {
        **flat(BundleConfig(federate).content.get("client") or {}),
        **{join_id(parts[1:]): value for key, value in overrides.items() if (parts := split_id(key))[0] == "client"},
    }
    guided = BundleConfig(train, given).content.get("teacher_adapt", "off") != "off"
    teacher = [path for path in workflow_files(bundle, "teacher") if path.is_file()] if guided else []
    return [*federate, *train, *teacher]


def seal_of(asked: Mapping[str, Any], configs: Iterable[Path]) -> dict[str, Any]:
    """The seal of a run.

    Args:
        asked: values of its command line by option; one that is the path of a file counts with the file's content,
            wherever the file lies.
        configs: configuration files; notes (top-level keys that begin with ``_``) and white space do not count.
    """
    return {
        "asked": {option: _counted(value) for option, value in asked.items()},
        "configs": [[path.name, canonical_hash(_said(path))] for path in configs],
    }


def _said(path: Path) -> Any:
    content = read_json(path)
    if not isinstance(content, dict):
        return content
    return {key: value for key, value in content.items() if not key.startswith("_")}


def _counted(value: Any) -> str:
    if _is_file(value):
        return f"sha256:{sha256_file(value)}"
    return value if isinstance(value, str) else json.dumps(value, default=repr)


def _is_file(value: Any) -> bool:
    try:
        return isinstance(value, str) and Path(value).is_file()
    except OSError:  # too long for a path
        return False
