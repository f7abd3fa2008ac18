"""FLARE's list of classes that a job without code may name: what ours needs is added, nothing is taken away."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from samfed_monai.core.io import read_json, write_json
from samfed_monai.flare.job import EXECUTOR

#: What a job of ours names: the controller and FLARE's own executor of external processes. No prefix: single classes.
NEEDED = ("samfed_monai.flare.controller.FederationController", EXECUTOR)
_KEY = "class_allow_list"


def merge_allow_list(local: str | Path, more: Sequence[str] = ()) -> Path:
    """Writes ``resources.json`` into a workspace's ``local/`` folder.

    Starts from ``resources.json`` there, else from ``resources.json.default`` (a provisioned kit has it), else from an
    empty file with FLARE's own default list; the list is kept and ours is added.

    Args:
        local: the ``local`` folder of a start-up kit or simulator workspace.
        more: further classes or prefixes (a prefix ends in a dot).
    """
    local = Path(local)
    target = local / "resources.json"
    content = _start(local)
    known = list(content.get(_KEY) or _default())
    content[_KEY] = known + [name for name in (*NEEDED, *more) if name not in known]
    write_json(target, content)
    return target


def allow_list_snippet() -> str:
    """What an operator adds by hand, as JSON."""
    return json.dumps({_KEY: list(NEEDED)}, indent=2)


def _start(local: Path) -> dict[str, Any]:
    for name in ("resources.json", "resources.json.default"):
        if (local / name).is_file():
            return dict(read_json(local / name))
    return {}


def _default() -> list[str]:
    from nvflare.app_common.default_component_policy import DEFAULT_CLASS_ALLOW_LIST

    return list(DEFAULT_CLASS_ALLOW_LIST)
