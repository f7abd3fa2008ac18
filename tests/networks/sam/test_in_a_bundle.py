"""The settings of docs/personalised.md on top of a bundle's train.json: a round of two stages."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import monai

from samfed_monai.networks import SamNetwork, SamPath
from tests.workflow import workflow

REPOSITORY = Path(__file__).resolve().parents[3]
OFF = ("stream", "guides#sam", "terms#pseudo_label", "terms#sam_kd", "terms#global_kd")


def test_documented_round_trains_both_stages(checkpoint, small_federation, monkeypatch):
    monkeypatch.setenv("SAMFED_WEIGHTS", str(checkpoint.parent))
    shown: dict[str, Any] = {f"{part}#_disabled_": True for part in OFF}
    page = (REPOSITORY / "docs" / "personalised.md").read_text().partition("## SAM at the sites")[2]
    for block in re.findall(r"```json\n(.*?)```", page, re.DOTALL):
        shown |= json.loads(block)
    before = monai.data.get_track_meta()
    try:
        made = workflow(REPOSITORY / "bundles" / "samfed_skin", small_federation, standalone={}, batch_size=1, **shown)
        made.run()
    finally:
        monai.data.set_track_meta(before)
    assert isinstance(made.trainer.network, SamNetwork)
    assert made.trainer.network.path is SamPath.PERSONAL
    experts = {"expert_1", "expert_2", "expert_3", "expert_4", "expert_least"}
    assert set(made.trainer.state.term_means) == {"supervised", "mutual_kd", "load_balance"} | experts
