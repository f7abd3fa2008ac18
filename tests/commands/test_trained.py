"""How a run was scored is taken over when its model is scored again."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from samfed_monai.commands.trained_model import scored_as


def test_a_runs_own_way_of_scoring_is_taken_over():
    validate = {"scores": {"_target_": "x", "pooled": True}, "inferer": {"enabled": "auto"}, "dataset": "@images"}
    client = {"label_resize": "nearest", "validate": validate}
    assert scored_as(SimpleNamespace(run={"config": {"client": client}})) == {
        "label_resize": "nearest",
        "validate#scores#pooled": True,
        "validate#inferer#enabled": "auto",
    }


def test_what_nobody_says_is_the_bundles():
    assert scored_as(Path("model.safetensors")) == {}
    assert scored_as(SimpleNamespace(run={})) == {}
    assert scored_as(SimpleNamespace(run={"config": {"client": {"validate": {"inferer": {"enabled": "@amp"}}}}})) == {}
