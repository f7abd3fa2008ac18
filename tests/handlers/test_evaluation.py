"""Scores of every image of an evaluator; refusals and averages of an evaluation of sites."""

from __future__ import annotations

import csv
import logging
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import DataLoader
from monai.engines import SupervisedEvaluator
from PIL import Image

from samfed_monai.core.errors import Refused
from samfed_monai.core.io import read_json, save_tensors
from samfed_monai.data import render_synthetic
from samfed_monai.handlers import SiteEvaluation
from samfed_monai.handlers.evaluation import ScoreHandler, safe_name, write_scores
from samfed_monai.teacher.evaluation import dice_score


class Half(torch.nn.Module):
    """Predicts the left half of every image."""

    def forward(self, images):
        logits = torch.full_like(images[:, :1], -5.0)
        logits[..., : images.shape[-1] // 2] = 5.0
        return logits


def items(names):
    label = torch.zeros(1, 6, 8)
    label[..., :4] = 1
    labels = [label, torch.zeros(1, 6, 8), torch.ones(1, 6, 8)]
    return [{"image": torch.zeros(3, 6, 8), "label": labels[index % 3], "id": name} for index, name in enumerate(names)]


def evaluate(handler, *, names=("a", "b", "c"), batch_size=2, decollate=True):
    evaluator = SupervisedEvaluator(
        device="cpu",
        val_data_loader=DataLoader(items(names), batch_size=batch_size),
        network=Half(),
        decollate=decollate,
        val_handlers=[handler],
    )
    logging.getLogger("ignite").setLevel(logging.ERROR)
    evaluator.run()
    return evaluator.state


@pytest.mark.parametrize("decollate", [True, False])
def test_every_image_is_scored_and_scores_reset_for_each_run(decollate):
    handler = ScoreHandler()
    state = [evaluate(handler, batch_size=size, decollate=decollate) for size in (1, 2)][-1]
    assert [row["id"] for row in state.scores] == ["a", "b", "c"]
    assert [row["dice"] for row in state.scores] == [1.0, 0.0, pytest.approx(2 / 3)]
    assert [row["empty"] for row in state.scores] == ["none", "label", "none"]
    assert state.scores[1]["hd95"] == 10.0
    assert state.metrics["dice"] == pytest.approx(5 / 9)
    assert state.metrics["iou"] == pytest.approx(0.5)
    assert state.score_summary["n"] == 3
    assert state.score_summary["empty"] == {"both": 0, "prediction": 0, "label": 1}
    assert state.score_summary["convention"] == {"hd95": "max of directed", "empty": "diagonal"}
    assert state.metrics["hd95"] == pytest.approx((0 + 10 + 4) / 3)


def test_hssf_convention_pools_distances_and_skips_empty_masks():
    state = evaluate(ScoreHandler(pooled=True, skip_empty=True))
    assert state.score_summary["convention"] == {"hd95": "pooled", "empty": "skipped"}
    assert state.score_summary["empty"]["label"] == 1
    assert state.score_summary["n"] == 3
    # first image 0, third 4: of both surfaces' 40 pixels the 6 at the right edge are 4 away, place 37.05 is among them
    assert state.metrics["hd95"] == pytest.approx((0 + 4) / 2)
    assert state.scores[1]["hd95"] == 10.0


def engine_with(*output):
    engine = Engine(lambda engine, batch: None)
    engine.state.batch, engine.state.output = {"id": ["a"]}, list(output)
    return engine


def test_hd95_is_none_without_measured_images():
    engine = engine_with({"pred": torch.full((1, 4, 4), -5.0), "label": torch.ones(1, 4, 4)})
    handler = ScoreHandler(skip_empty=True)
    handler(engine)
    handler.finish(engine)
    assert engine.state.score_summary["hd95"] is None
    assert engine.state.metrics == dict.fromkeys(("dice", "iou", "sensitivity", "precision", "area"), 0.0)


def test_probability_of_one_half_is_foreground():
    engine, handler = engine_with({"pred": torch.zeros(1, 4, 4), "label": torch.ones(1, 4, 4)}), ScoreHandler()
    handler(engine)
    handler.finish(engine)
    assert engine.state.metrics["dice"] == dice_score(torch.full((1, 1, 4, 4), 0.5), torch.ones(1, 1, 4, 4)) == 1


def test_private_masks_and_table_are_written(tmp_path):
    evaluate(ScoreHandler(output_dir=tmp_path), names=("Läsion 7", "../b", "c", "c"))
    files = sorted((tmp_path / "masks").iterdir())
    assert len(files) == 4
    assert {"Läsion 7.png", "c.png", "c-2.png"} < {file.name for file in files}, "two of one name keep two masks"
    for file in [*files, tmp_path / "scores.csv"]:
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    mask = np.array(Image.open(tmp_path / "masks" / "c.png"))
    assert mask.shape == (6, 8)
    assert (mask[:, :4] == 255).all()
    assert (mask[:, 4:] == 0).all()
    with (tmp_path / "scores.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["id"] for row in rows] == ["Läsion 7", "../b", "c", "c"]
    assert (tmp_path / "masks" / rows[1]["mask"]).exists()
    assert float(rows[0]["dice"]) == 1.0


@pytest.mark.parametrize("name", ["../../etc/passwd", "..", "", "a/b", "a\\b", "a\x00b", ".hidden"])
def test_safe_name_stays_in_folder(name, tmp_path):
    path = (tmp_path / f"{safe_name(name)}.png").resolve()
    assert path.parent == tmp_path.resolve()
    assert not path.name.startswith(".")


def test_long_id_is_truncated_with_hash():
    long = "a" + "病" * 100  # 301 bytes; byte 120 is the second of a character
    assert safe_name(long)[:-9] == "a" + "病" * 39
    assert safe_name(long) != safe_name(long + "变")
    assert safe_name("病" * 40) == "病" * 40
    assert len({safe_name("a/b"), safe_name("a\\b"), safe_name("a_b")}) == 3, "changed ids never share a file"


def test_missing_label_and_non_boolean_options_are_refused():
    with pytest.raises(Refused, match="an image without a label; evaluate a split with labels"):
        ScoreHandler()(engine_with({"pred": torch.zeros(1, 2, 2)}))
    with pytest.raises(Refused, match=r"(?s)pooled: expected true or false, found 'yes'.*skip_empty.*found 1"):
        ScoreHandler(pooled="yes", skip_empty=1)


def test_empty_loader_is_reported(caplog):
    engine = engine_with()
    ScoreHandler().finish(engine)
    assert engine.state.scores == []
    assert "no image was scored" in caplog.text


def test_score_table_without_masks_has_empty_column(tmp_path):
    write_scores(tmp_path / "s.csv", [{"id": "a", "dice": 0.5, "iou": 0.25, "hd95": 3.0, "empty": "none"}])
    assert (tmp_path / "s.csv").read_text() == (
        "id,dice,iou,hd95,sensitivity,precision,area,empty,estimate,mask\na,0.5,0.25,3.0,,,,none,,\n"
    )


def evaluation(folder: Path, **kwargs: Any) -> SiteEvaluation:
    plain: dict[str, Any] = {"evaluator": None, "scores": None, "model": folder / "m.pt", "preprocessing": dict}
    plain |= {"datalist": folder / "list.json", "data_root": folder, "output_dir": folder / "out"}
    return SiteEvaluation(**(plain | kwargs))


def test_empty_split_unknown_site_and_changed_file_are_refused(tmp_path: Path) -> None:
    settings = {"images_per_site": 1, "public": 1, "validation": 0, "test": 1, "size": (64, 64)}
    render_synthetic(tmp_path, sites=1, **settings).save(tmp_path / "list.json")  # type: ignore[arg-type]
    with pytest.raises(Refused, match=r"list.json -> sites -> validation: expected at least one image, found none"):
        evaluation(tmp_path, split="validation").run()
    for place in ("site-1", "site-1/images/scores"):
        with pytest.raises(Refused, match=r"output_dir: expected a folder without listed images, found .*; choose"):
            evaluation(tmp_path, output_dir=tmp_path / place).run()
    with pytest.raises(Refused, match="site: expected one of"):
        evaluation(tmp_path, site="sito").run()
    with pytest.raises(Refused, match="val_handlers: expected a list with @validate#scores, found other handlers only"):
        evaluation(tmp_path, evaluator=engine_with(), scores=ScoreHandler()).run()
    next((tmp_path / "site-1/masks").iterdir()).write_bytes(b"another")
    with pytest.raises(Refused, match=r"masks/.*: expected .*…, found SHA-256 .*…; restore the file, or make the list"):
        evaluation(tmp_path).run()
    assert not (tmp_path / "out").exists()


def test_weights_with_other_settings_are_refused(tmp_path: Path) -> None:
    model = tmp_path / "m.safetensors"
    save_tensors(model, {"a": torch.zeros(1)}, {"network_name": "basic_unet", "image_size": "32"})
    message = r"2 problems\n  - network_name: expected 'basic_unet', as m.safetensors was trained, found 'unet'; give "
    message += r"--network_name basic_unet\n  - image_size: expected 32, as m.safetensors was trained, found 256; give "
    with pytest.raises(Refused, match=f"{message}--image_size 32$"):
        evaluation(tmp_path, model=model, settings={"network_name": "unet", "image_size": 256, "batch_size": 1})
    evaluation(tmp_path, model=model, settings={"image_size": 32})
    evaluation(tmp_path, model=model)


@pytest.mark.parametrize("skip_empty", [False, True])
def test_average_is_over_images_not_sites(tmp_path: Path, skip_empty: bool, monkeypatch, caplog) -> None:
    empty = {"both": 0, "prediction": 1, "label": 0}
    sites = {
        "a": {"dice": 0.5, "iou": 0.4, "hd95": None if skip_empty else 10.0, "n": 1, "empty": empty},
        "b": {"dice": 0.9, "iou": 0.8, "hd95": 2.0, "n": 3, "empty": dict.fromkeys(empty, 0)},
    }
    save_tensors(tmp_path / "m.safetensors", torch.nn.Linear(1, 1).state_dict())
    evaluator = SimpleNamespace(network=torch.nn.Linear(1, 1), has_event_handler=lambda handler: True)
    scores = ScoreHandler(skip_empty=skip_empty)
    run = evaluation(tmp_path, evaluator=evaluator, scores=scores, model=tmp_path / "m.safetensors")
    monkeypatch.setattr(run, "_records", lambda: sites)
    monkeypatch.setattr(run, "_evaluate_site", lambda name, items: items)
    with caplog.at_level("INFO"):
        result = run.run()
    means = {"dice": 0.8, "iou": 0.7, "hd95": 2.0 if skip_empty else 4.0, "n": 4}
    assert result["average"] == {**{key: pytest.approx(value) for key, value in means.items()}, "empty": empty}
    assert result["convention"]["empty"] == ("skipped" if skip_empty else "diagonal")
    assert read_json(tmp_path / "out" / "metrics.json")["convention"] == result["convention"]
    assert f"a        1  0.500  0.400  {'-   ' if skip_empty else '10.0'}  1\n" in caplog.text
