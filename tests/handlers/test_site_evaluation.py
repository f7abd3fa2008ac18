"""What an evaluation refuses before it starts, and how it averages (its run is tested with the bundle)."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from samfed_monai.core.errors import Refused
from samfed_monai.core.io import read_json, save_tensors
from samfed_monai.data import render_synthetic
from samfed_monai.handlers import SiteEvaluation
from samfed_monai.handlers.evaluation import ScoreHandler


def evaluation(folder: Path, **kwargs: Any) -> SiteEvaluation:
    plain: dict[str, Any] = {"evaluator": None, "scores": None, "model": folder / "m.pt", "preprocessing": dict}
    plain |= {"datalist": folder / "list.json", "data_root": folder, "output_dir": folder / "out"}
    return SiteEvaluation(**(plain | kwargs))


def test_a_split_without_images_or_an_unknown_site_is_refused(tmp_path: Path) -> None:
    settings = {"images_per_site": 1, "public": 1, "validation": 0, "test": 1, "size": (64, 64)}
    render_synthetic(tmp_path, sites=1, **settings).save(tmp_path / "list.json")  # type: ignore[arg-type]
    with pytest.raises(Refused, match=r"list.json -> sites -> validation: expected at least one, found no image"):
        evaluation(tmp_path, split="validation").run()
    with pytest.raises(Refused, match="site: expected one of"):
        evaluation(tmp_path, site="sito").run()
    assert not (tmp_path / "out").exists()


def test_weights_that_were_trained_with_other_settings_are_refused_when_it_is_built(tmp_path: Path) -> None:
    model = tmp_path / "m.safetensors"
    save_tensors(model, {"a": torch.zeros(1)}, {"network_name": "basic_unet", "image_size": "32"})
    message = (
        r"2 problems\n"
        r"  - network_name: expected 'basic_unet', as m.safetensors was trained, found 'unet'; "
        r"give --network_name basic_unet\n"
        r"  - image_size: expected 32, as m.safetensors was trained, found 256; give --image_size 32$"
    )
    with pytest.raises(Refused, match=message):
        evaluation(tmp_path, model=model, settings={"network_name": "unet", "image_size": 256, "batch_size": 1})
    evaluation(tmp_path, model=model, settings={"image_size": 32})
    evaluation(tmp_path, model=model)


@pytest.mark.parametrize("skip_empty", [False, True])
def test_the_average_is_over_images_not_over_sites(tmp_path: Path, skip_empty: bool, monkeypatch, caplog) -> None:
    empty = {"both": 0, "prediction": 1, "label": 0}
    sites = {
        "a": {"dice": 0.5, "iou": 0.4, "hd95": None if skip_empty else 10.0, "n": 1, "empty": empty},
        "b": {"dice": 0.9, "iou": 0.8, "hd95": 2.0, "n": 3, "empty": dict.fromkeys(empty, 0)},
    }
    save_tensors(tmp_path / "m.safetensors", torch.nn.Linear(1, 1).state_dict())
    evaluator = SimpleNamespace(network=torch.nn.Linear(1, 1))
    scores = ScoreHandler(skip_empty=skip_empty)
    run = evaluation(tmp_path, evaluator=evaluator, scores=scores, model=tmp_path / "m.safetensors")
    monkeypatch.setattr(run, "_records", lambda: sites)
    monkeypatch.setattr(run, "_one_site", lambda name, items: items)
    with caplog.at_level("INFO"):
        result = run.run()
    means = {"dice": 0.8, "iou": 0.7, "hd95": 2.0 if skip_empty else 4.0, "n": 4}
    assert result["average"] == {**{key: pytest.approx(value) for key, value in means.items()}, "empty": empty}
    assert result["convention"]["empty"] == ("skipped" if skip_empty else "diagonal")
    assert read_json(tmp_path / "out" / "metrics.json")["convention"] == result["convention"]
    assert f"a, test: Dice 0.5000, IoU 0.4000, HD95 {'-' if skip_empty else '10.0 px'}, 1 images, 1 with" in caplog.text
