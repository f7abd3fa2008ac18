"""A small bundle on disk: options on top, one component of MONAI, one of the tests, one variant."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TRAIN = {
    "bundle_root": ".",
    "rate": 0.1,
    "steps": None,
    "amp": False,
    "spare": "an option that another program reads",
    "imports": ["$import samfed_monai.config as samfed_config"],
    "loss": {"_target_": "monai.losses.DiceLoss", "sigmoid": True, "reduction": "mean"},
    "terms": {"first": {"_target_": "tests.config.toys.Trainer", "rate": 0.5}},
    "train": {
        "trainer": {
            "_target_": "tests.config.toys.Trainer",
            "loss": "@loss",
            "rate": "@rate",
            "steps": "@steps",
            "amp": "@amp",
        }
    },
    "initialize": ["$samfed_config.require_checked(@bundle_root, 'train')"],
    "run": ["$samfed_config.run_job(job=@train#trainer)"],
}
VARIANT = {"terms#first#_disabled_": True, "rate": 0.2}

Write = Callable[[str, Any], Path]


@pytest.fixture(autouse=True)
def _tests_may_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAMFED_ALLOW", "tests.")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """Folder of a bundle without a problem."""
    root = tmp_path / "toy"
    (root / "configs" / "variants").mkdir(parents=True)
    for name, content in {"metadata": {"version": "0.1.0"}, "train": TRAIN, "variants/gentle": VARIANT}.items():
        (root / "configs" / f"{name}.json").write_text(json.dumps(content, indent=1))
    return root


@pytest.fixture
def rewrite(bundle: Path) -> Write:
    """Writes a config file of the bundle again: text as it is, ``{id: value}`` merged into the file."""

    def write(name: str, change: Any) -> Path:
        path = bundle / "configs" / name
        if not isinstance(change, str):
            content = json.loads(path.read_text()) if path.exists() else {}
            for key, value in change.items():
                *holders, last = key.split("#")
                place = content
                for holder in holders:
                    place = place[holder]
                place[last] = value
            change = json.dumps(content, indent=1)
        path.write_text(change)
        return path

    return write
