"""What docs/personalised.md shows, on top of a bundle's own train.json: a round of two stages."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import monai
from monai.bundle import ConfigParser

from samfed_monai.data import render_synthetic
from samfed_monai.networks import SamNetwork, SamPath

REPOSITORY = Path(__file__).resolve().parents[3]
BUNDLE = REPOSITORY / "bundles" / "samfed_skin"
OFF = ("stream", "guides#sam", "terms#pseudo_label", "terms#sam_kd", "terms#global_kd")


def test_a_round_of_both_stages(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("SAMFED_WEIGHTS", str(checkpoint.parent))
    settings: dict[str, Any] = {"images_per_site": 2, "public": 2, "validation": 1, "test": 1, "size": (64, 64)}
    listed = render_synthetic(tmp_path / "images", sites=1, **settings)
    listed.save(tmp_path / "list.json")
    overrides: dict[str, Any] = {
        "bundle_root": str(BUNDLE),
        "datalist": str(tmp_path / "list.json"),
        "data_root": str(tmp_path / "images"),
        "site": next(iter(listed.sites)),
        "output_dir": str(tmp_path / "run"),
        "image_size": 32,
        "batch_size": 1,
        "local_steps": 2,
        "standalone": {},
        **{f"{part}#_disabled_": True for part in OFF},
    }
    page = (REPOSITORY / "docs" / "personalised.md").read_text().partition("## SAM at the sites")[2]
    for block in re.findall(r"```json\n(.*?)```", page, re.DOTALL):
        overrides |= json.loads(block)
    before = monai.data.get_track_meta()
    monai.data.set_track_meta(False)
    try:
        parser = ConfigParser()
        parser.read_config(BUNDLE / "configs" / "train.json")
        for name, value in overrides.items():
            parser.set(value, name)
        trainer = parser.get_parsed_content("train#trainer")
        trainer.state.round, trainer.state.rounds, trainer.state.max_epochs = 0, 1, 1
        trainer.run()
    finally:
        monai.data.set_track_meta(before)
    assert isinstance(trainer.network, SamNetwork)
    assert trainer.network.path is SamPath.PERSONAL
    experts = {"expert_1", "expert_2", "expert_3", "expert_4", "expert_least"}
    assert set(trainer.state.term_means) == {"supervised", "mutual_kd", "load_balance"} | experts
