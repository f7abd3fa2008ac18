"""A copied bundle is checked, trains and segments without the other one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import monai
import pytest

from samfed_monai.cli.main import main
from samfed_monai.config import find_variant
from samfed_monai.core.io import check_tensors, safe_load
from samfed_monai.core.model_file import settings_of
from samfed_monai.data import render_synthetic
from tests.workflow import workflow


@pytest.fixture
def copy(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The bundle's files in a folder of their own, without the other bundle beside them."""
    folder = tmp_path / "elsewhere" / "mine"
    shutil.copytree(bundle, folder, ignore=shutil.ignore_patterns("*.pt", "*.safetensors"))
    monkeypatch.chdir(folder.parent)
    return folder


def test_copied_bundle_works_alone(copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["check", str(copy)]) == 0
    assert "mine: no problems in train, teacher, federate, evaluate, inference\n" in capsys.readouterr().out
    scene = "polyp" if "polyp" in (copy / "configs" / "metadata.json").read_text() else "skin"
    sizes: dict[str, Any] = {"images_per_site": 2, "public": 2, "validation": 2, "test": 2, "size": (64, 64)}
    render_synthetic(tmp_path, scene=scene, sites=1, **sizes).save(tmp_path / "list.json")
    before = monai.data.get_track_meta()
    out = str(tmp_path / "out")
    try:
        made = workflow(copy, tmp_path, [find_variant(copy, "no_sam")], output_dir=out, local_steps=1, amp=False)
        made.run()
    finally:
        monai.data.set_track_meta(before)
    weights = tmp_path / "out" / "best.safetensors"
    assert not check_tensors(safe_load(weights), like=made.trainer.network.state_dict())
    assert settings_of(weights) == {"network_name": "basic_unet", "image_size": 32}
    words = ["--model", str(weights), "--output-dir", str(tmp_path / "masks")]
    assert main(["infer", str(copy), str(tmp_path / "public"), *words]) == 0
    assert list((tmp_path / "masks").rglob("*.png"))
