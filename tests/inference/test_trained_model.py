"""What ``--model`` can be: a run with its way of scoring, and the adapter that ``samfed teach`` wrote."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from samfed_monai.cli.main import main
from samfed_monai.config.bundles import find_bundle
from samfed_monai.core.errors import Refused
from samfed_monai.core.io import read_json
from samfed_monai.data import DataList, load_records, render_synthetic
from samfed_monai.federation.site_teacher import SiteMasks
from samfed_monai.federation.workflow import WorkflowConfig
from samfed_monai.inference import Predictor
from samfed_monai.inference.model import TrainedModel, scored_as
from samfed_monai.networks import Teacher
from samfed_monai.teacher.exam import read_image_tensor
from tests.inference.models import small_model
from tests.modes import open_to_others
from tests.networks.fakes import fake_checkpoint

BUNDLE = Path(__file__).parents[2] / "bundles" / "samfed_skin"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A list of two sites, random weights of SAM, and an adapter fitted with them at 64 px."""
    folder = tmp_path_factory.mktemp("fitted")
    weights = fake_checkpoint(folder / "mobile_sam.pt")
    datalist = render_synthetic(
        folder / "images", sites=2, labelled=True, images_per_site=4, public=4, validation=2, test=3, size=(96, 80)
    )
    datalist.save(folder / "list.json")
    words = [*data(folder), "--output", str(folder / "teacher.safetensors"), "--size", "64", "--epochs", "1"]
    checkpoint = ["--checkpoint", str(weights), "--progress", "false", "--learning_rate", "0.01"]
    assert main(["teach", str(BUNDLE), *words, *checkpoint]) == 0
    return folder


def data(folder: Path) -> list[str]:
    return ["--datalist", str(folder / "list.json"), "--data-root", str(folder / "images")]


@pytest.fixture
def evaluate(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    monkeypatch.setenv("SAMFED_WEIGHTS", str(work))

    def run(*words: str) -> int:
        model = ["--model", str(work / "teacher.safetensors"), "--output-dir", str(tmp_path / "scores")]
        return main(["evaluate", str(BUNDLE), *model, *data(work), *words])

    return run


@pytest.fixture
def infer(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    monkeypatch.setenv("SAMFED_WEIGHTS", str(work))

    def run(*words: str) -> int:
        model = [str(work / "images" / "site-1" / "images"), "--model", str(work / "teacher.safetensors")]
        return main(["infer", str(BUNDLE), *model, "--output-dir", str(tmp_path / "masks"), *words])

    return run


def teacher(work: Path, views: int = 1) -> Teacher:
    return Teacher.load("vit_t", work / "mobile_sam.pt", work / "teacher.safetensors", size=64, views=views)


def test_its_scores_are_those_of_its_row_in_a_federation(evaluate, work, tmp_path, capsys):
    assert evaluate("--image_size", "64") == 0
    shown = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in shown[1:4]] == [["site-1", "3"], ["site-2", "3"], ["average", "6"]]
    fitted, listed = teacher(work), DataList.load(work / "list.json")
    config = WorkflowConfig(BUNDLE, ("configs/train.json",), {"image_size": 64})
    for site in listed.sites:
        masks = SiteMasks(site, tmp_path / "cache", listed, work / "images")
        masks.fill(fitted, ("test",))
        own = masks.teacher_scores(fitted.sha256, config, "test")
        with open(tmp_path / "scores" / site / "test" / "scores.csv", newline="") as stream:
            rows = list(csv.DictReader(stream))
        assert [row["id"] for row in rows] == [row["id"] for row in own]
        # the store has 8 bits: a pixel at the threshold may flip
        expected = [pytest.approx(row["dice"], abs=0.01) for row in own]
        assert [float(row["dice"]) for row in rows] == expected
    assert open_to_others(tmp_path / "scores") == []
    found = read_json(tmp_path / "scores" / "metrics.json")
    assert found["average"]["n"] == 6
    assert 0 < found["average"]["dice"] < 1
    about = {name: found["teacher"][name] for name in ("adapt", "base", "size", "views", "sha256")}
    assert about == {"adapt": "lora", "base": "vit_t", "size": 64, "views": 1, "sha256": fitted.sha256}
    assert set(found["teacher"]["after"]) == {"held_out", "site-1", "site-2"}
    assert (found["model"], found["split"]) == ("teacher.safetensors", "test")


def test_site_split_views_and_the_bundles_own_settings_count(evaluate, work, tmp_path):
    words = ["--site", "site-2", "--split", "validation", "--views", "2", "--limit", "1", "--image_size", "64"]
    assert evaluate(*words, "--validate#scores#pooled", "true") == 0
    found = read_json(tmp_path / "scores" / "metrics.json")
    assert list(found["sites"]) == ["site-2"]
    assert found["average"]["n"] == 1
    assert found["convention"]["hd95"] == "pooled"
    assert (found["teacher"]["views"], found["teacher"]["sha256"]) == (2, teacher(work, 2).sha256)


def test_masks_have_each_images_size_and_are_the_teachers(infer, work, tmp_path, capsys):
    assert infer("--probabilities", "--views", "2") == 0
    records = load_records(DataList.load(work / "list.json"), work / "images", split="test", site="site-1")
    fitted = teacher(work, 2)
    for record in records:
        name = Path(record["image"]).stem
        mask = np.asarray(Image.open(tmp_path / "masks" / f"{name}.png"))
        assert mask.shape == (96, 80)
        assert set(np.unique(mask)) <= {0, 255}
        probabilities = fitted.probabilities(read_image_tensor(record).float() / 255)
        resized = torch.nn.functional.interpolate(torch.logit(probabilities, 1e-6), (96, 80), mode="bilinear")
        shown = np.asarray(Image.open(tmp_path / "masks" / f"{name}.probability.png")) / 255
        np.testing.assert_allclose(shown, resized.sigmoid()[0, 0].numpy(), atol=0.5 / 255 + 1e-5)
    predictor = Predictor(BUNDLE, work / "teacher.safetensors", views=2)
    for found in predictor(work / "images" / "site-1" / "images"):
        assert np.array_equal(found.mask, np.asarray(Image.open(tmp_path / "masks" / f"{found.name}.png")))
    note = read_json(tmp_path / "masks" / "inference.json")
    assert note == {"model_sha256": fitted.sha256, "image_size": 64, "threshold": 0.5}
    assert infer("--views", "4") == 2, "other views are another inference"
    assert "inference.json -> model_sha256: expected" in capsys.readouterr().err


def test_another_size_or_sam_is_refused_with_what_to_do(evaluate, infer, work, tmp_path, monkeypatch, capsys):
    assert evaluate("--teacher#size", "128") == 2
    told = "teacher.safetensors -> size: expected 128, found 64; set size of teacher.json to 64"
    assert told in capsys.readouterr().err
    (tmp_path / "other").mkdir()
    fake_checkpoint(tmp_path / "other" / "mobile_sam.pt", seed=1)
    monkeypatch.setenv("SAMFED_WEIGHTS", str(tmp_path / "other"))
    assert infer() == 2
    assert "teacher.safetensors -> base_sha256: expected" in capsys.readouterr().err
    assert not (tmp_path / "masks").exists()
    monkeypatch.setenv("SAMFED_WEIGHTS", str(tmp_path))
    assert infer() == 2
    assert "run `samfed weights mobile_sam" in capsys.readouterr().err


def test_what_is_wrong_with_either_file_is_refused_together(evaluate, capsys):
    assert evaluate("--image_sise", "64", "--teacher#view", "2") == 2
    error = capsys.readouterr().err
    assert "did you mean 'image_size'" in error
    assert "did you mean 'views'" in error
    assert evaluate("--site", "site-9") == 2
    assert "site-9" in capsys.readouterr().err


def test_a_student_is_scored_over_views(work, tmp_path):
    small_model(tmp_path / "student.safetensors")
    words = [*data(work), "--site", "site-1", "--limit", "2", "--model", str(tmp_path / "student.safetensors")]
    dice = []
    for views in ([], ["--views", "1"], ["--views", "4"]):
        assert main(["evaluate", str(BUNDLE), *words, "--output-dir", str(tmp_path), *views]) == 0
        dice.append(read_json(tmp_path / "metrics.json")["average"]["dice"])
    assert dice[0] == dice[1] != dice[2]


def test_a_damaged_adapter_is_refused(work, tmp_path, capsys):
    content = (work / "teacher.safetensors").read_bytes()
    (tmp_path / "torn.safetensors").write_bytes(content[: len(content) // 2])
    words = ["--model", str(tmp_path / "torn.safetensors"), "--output-dir", str(tmp_path / "scores")]
    assert main(["evaluate", str(BUNDLE), *words, *data(work)]) == 2
    assert "torn.safetensors: expected a teacher's adapter, found" in capsys.readouterr().err


def test_a_runs_own_way_of_scoring_is_taken_over():
    validate = {"scores": {"_target_": "x", "pooled": True}, "inferer": {"enabled": "auto"}, "dataset": "@images"}
    client = {"label_resize": "nearest", "validate": validate}
    assert scored_as({"config": {"client": client}}) == {
        "label_resize": "nearest",
        "validate#scores#pooled": True,
        "validate#inferer#enabled": "auto",
    }
    assert scored_as({}) == scored_as({"config": {"client": {"validate": {"inferer": {"enabled": "@amp"}}}}}) == {}


def test_a_bundle_without_weights_is_not_evaluated_without_a_model(tmp_path, capsys):
    own = tmp_path / "own"
    shutil.copytree(find_bundle("samfed_polyp"), own, ignore=shutil.ignore_patterns("model.*"))
    words = ["evaluate", str(own), "--datalist", "list.json", "--data-root", ".", "--output-dir", str(tmp_path)]
    assert main(words) == 2
    told = capsys.readouterr().err
    assert "--model: expected one: own ships no weights, found none; name one with --model" in told


def test_an_onnx_file_holds_no_weights_to_score_or_export(tmp_path: Path) -> None:
    told = "--model: expected a run or weights: an ONNX file is run by `samfed infer` alone, found a.onnx; name"
    with pytest.raises(Refused, match=told):
        TrainedModel("samfed_skin", tmp_path / "a.onnx").weights()
