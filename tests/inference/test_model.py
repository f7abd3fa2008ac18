"""What ``--model`` can be: a run, weights, a teacher's adapter; and the predictor that all commands share."""

from __future__ import annotations

import csv
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from samfed_monai.cli.main import main
from samfed_monai.config import BundleConfig, find_bundle
from samfed_monai.core.errors import Refused
from samfed_monai.core.io import read_json, save_tensors, sha256_file, write_json
from samfed_monai.data import DataList, load_records, render_synthetic
from samfed_monai.federation.site_teacher import SiteMasks
from samfed_monai.federation.workflow import WorkflowConfig
from samfed_monai.handlers import SiteEvaluation
from samfed_monai.inference import Kind, Predictor
from samfed_monai.inference.model import TrainedModel, scored_as, scoring_hash, size_problems
from samfed_monai.networks import Teacher
from samfed_monai.teacher.evaluation import read_image_tensor
from tests.federation.test_job import CLIENT, job
from tests.inference.models import ORGANS, small_model
from tests.modes import open_to_others
from tests.networks.fakes import fake_checkpoint


@pytest.fixture(scope="module")
def fedper(small_federation, tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    """A finished run and its results."""
    folder = tmp_path_factory.mktemp("runs") / "fedper"
    options: dict[str, Any] = {"variant": "fedper", "rounds": 1, "train": {**CLIENT, "personal": ["final_conv.*"]}}
    return folder, job(small_federation, folder, **options).run()


def evaluate(model: Path, data: Path, output: Path, *words: str) -> dict[str, Any]:
    where = ("--datalist", str(data / "list.json"), "--data-root", str(data), "--output-dir", str(output))
    assert main(["evaluate", "samfed_skin", "--model", str(model), *where, *words]) == 0
    content: dict[str, Any] = read_json(output / "metrics.json")
    return content


def test_sites_are_scored_with_own_model_as_in_run(fedper, small_federation, tmp_path, capsys):
    run, results = fedper
    assert main(["check", "samfed_skin", "--workflow", "evaluate", "--model", str(run)]) == 0
    found = evaluate(run, small_federation, tmp_path / "all")
    rows = {site: {**results["sites"][site]["test"], "convention": results["convention"]} for site in results["sites"]}
    assert found["sites"] == rows
    assert sorted(rows) == ["site-1", "site-2"]
    assert found["average"] == results["average"]["test"]
    assert found["model"] == {"site-1": "site-1.safetensors", "site-2": "site-2.safetensors"}
    assert capsys.readouterr().out.splitlines()[2].split()[:2] == ["site-1", "2"]  # after the line of the check
    files = [tmp_path / name for name in ("two.safetensors", "half.pt", "two.pt", "half.pt")]
    codes = [main(["model", str(run), "--site", "site-2", "--output", str(file)]) for file in files]
    printed, there = capsys.readouterr().err, [f"expected a new name, found {file}, which exists" for file in files[:2]]
    assert (codes, [each in printed for each in there]) == ([0, 0, 2, 2], [True, True])
    alone = evaluate(files[0], small_federation, tmp_path / "one", "--site", "site-2")
    assert alone["sites"] == {"site-2": rows["site-2"]}
    state = torch.load(files[1], weights_only=True)  # a plain state dict in half precision
    assert {tensor.dtype for tensor in state.values()} <= {torch.float16, torch.int64}
    settings = [*(f"--{name}={CLIENT[name]}" for name in ("network_name", "image_size")), "--allow-other-size"]
    half = evaluate(files[1], small_federation, tmp_path / "half", "--site", "site-2", *settings)
    assert half["average"]["dice"] == pytest.approx(rows["site-2"]["dice"], abs=0.01)


def test_too_few_calibration_images_and_unseen_sites_are_reported(
    fedper, small_federation, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr("samfed_monai.inference.predictor.require_enough", lambda images, split: None)
    paths = [str(path) for path in (small_federation / "list.json", small_federation, tmp_path)]
    with pytest.raises(Refused, match="expected at least 20 validation images with masks, found 4 images;"):
        (predictor := Predictor("samfed_skin", fedper[0])).score(*paths, calibrate=True)
    assert sorted(read_json(tmp_path / "metrics.json")["sites"]) == ["site-1", "site-2"]
    assert "server's model" not in caplog.text
    predictor.model.run.trained, predictor.model.run.unseen = ["site-1"], ["site-2"]
    predictor.score(*paths[:2], str(tmp_path / "more"), split="test")
    assert "scored with the server's model, as no such site trained in the run: site-2" in caplog.text


def test_infer_and_export_use_model_of_named_site(fedper, small_federation, tmp_path, capsys):
    run, _ = fedper
    infer = ["infer", "samfed_skin", str(small_federation / "public"), "--output-dir", str(tmp_path / "masks")]
    assert main([*infer, "--model", str(run)]) == 2
    assert "found shared values only; choose the model of a site with --site: site-1, site-2" in capsys.readouterr().err
    assert main([*infer, "--model", str(run / "rounds" / "000" / "global.safetensors")]) == 2
    assert "expected all tensors of this network, found 2 missing, first final_conv" in capsys.readouterr().err
    assert main([*infer, "--model", str(run), "--site", "site-1"]) == 0
    assert list((tmp_path / "masks").rglob("*.png"))
    program = tmp_path / "site-1.ts"
    words = ["--to=torchscript", f"--output={program}", "--site=site-1"]
    assert main(["export", str(run), "--bundle=samfed_skin", *words]) == 0
    assert torch.jit.load(program)(torch.zeros(3, 3, 32, 32)).shape == (3, 1, 32, 32)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--output", "w.pth", "--site", "site-1"], "expected a name that ends in .safetensors"),
        (["--output", "w.safetensors", "--states", "."], "expected --site NAME, the site of these states"),
        (["--output", "w.safetensors", "--site", "site-3"], "expected one of ['site-1', 'site-2'], found 'site-3'"),
        (["--output", "w.safetensors"], "found shared values only"),
    ],
)
def test_model_command_refuses_invalid_arguments(fedper, capsys, words, message):
    assert main(["model", str(fedper[0]), *words]) == 2
    assert message in capsys.readouterr().err


def test_sam_is_rebuilt_as_trained_on_same_checkpoint(tmp_path):
    (tmp_path / "sam.pt").write_bytes(b"a SAM")
    header = {"network_name": "sam_vit_t", "image_size": "256", "base_sam": "0" * 64}
    header["network_def"] = '{"experts": 0, "_target_": "os.system"}'
    save_tensors(tmp_path / "w.safetensors", {"a": torch.zeros(1)}, header)
    own = {"network_def#checkpoint": str(tmp_path / "sam.pt"), "image_size": 256}
    with pytest.raises(Refused, match=r"SAM's weights: expected 000000000000, on which w.safetensors was trained"):
        TrainedModel("samfed_skin", tmp_path / "w.safetensors").ids("inference", own)
    header["base_sam"] = sha256_file(tmp_path / "sam.pt")
    save_tensors(tmp_path / "w.safetensors", {"a": torch.zeros(1)}, header)
    for workflow in ("inference", "evaluate"):
        ids = TrainedModel("samfed_skin", tmp_path / "w.safetensors").ids(workflow, own)
        assert ids.pop("model") == str(tmp_path / "w.safetensors")
        assert ids == {"network_name": "sam_vit_t", "network_def#experts": 0, **own}


def test_fixed_size_must_match_training_size(tmp_path):
    config, model = BundleConfig(), small_model(tmp_path / "w.safetensors")
    config.put("a.json", {"run": ["@resize"], "resize": {"spatial_size": [64, "@image_size"]}})
    config.put("command line", {"image_size": 32})
    assert [str(each).partition(";")[0] for each in size_problems(config, model)] == [
        "a.json -> resize#spatial_size: expected 32, used to train w.safetensors, found [64, '@image_size']"
    ]


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


@pytest.mark.parametrize("classes", [[], ORGANS])
def test_array_gets_same_mask_as_file(tmp_path, picture, classes):
    model = small_model(tmp_path / "w.safetensors", **({"classes": classes} if classes else {}))
    Image.fromarray(picture).save(tmp_path / "a.png")
    words = ["--model", str(model), "--output-dir", str(tmp_path / "masks"), "--probabilities"]
    assert main(["infer", "samfed_skin", str(tmp_path / "a.png"), *words]) == 0
    predictor = Predictor("samfed_skin", model)
    assert (predictor.model.kind, predictor.classes) == (Kind.WEIGHTS, classes)
    by_path, by_array = predictor([tmp_path / "a.png", picture])
    assert (by_path.name, by_array.name) == ("a", "1")
    written, shown = (np.asarray(Image.open(tmp_path / "masks" / f"a{form}.png")) for form in ("", ".probability"))
    for found in (by_path, by_array):
        assert np.array_equal(found.mask, written)
        assert found.probability.dtype == np.float32
        assert np.abs(found.probability * 255 - shown).max() <= 0.5 + 1e-4
    assert set(np.unique(written)) == ({0, 1, 2} if classes else {0, 255})


def test_overrides_and_views_are_applied(tmp_path, picture):
    model = small_model(tmp_path / "w.safetensors")
    (once,) = Predictor("samfed_skin", model, overrides={"threshold": 0.3})([picture])
    assert np.array_equal(once.mask > 0, once.probability >= 0.3)
    predictor = Predictor("samfed_skin", model, views=4)
    (four,) = predictor([picture])
    assert not np.array_equal(once.probability, four.probability)
    Image.fromarray(picture).save(tmp_path / "a.png")
    predictor.write([str(tmp_path / "a.png")], tmp_path / "masks")
    assert read_json(tmp_path / "masks" / "inference.json")["views"] == 4
    file = Path(shutil.copytree(BUNDLE, tmp_path / "mine")) / "configs" / "inference.json"
    text = file.read_text()
    file.write_text(re.sub(r'"data": \{.*\}', '"data": []', text))
    with pytest.raises(Refused, match="SupervisedEvaluator -> data loader: expected at least one image, found none"):
        Predictor(tmp_path / "mine", model)([picture])
    file.write_text(text.replace('evaluator"', 'judge"'))
    with pytest.raises(Refused, match=r"inference\.json: expected an id evaluator, found none; add this id"):
        Predictor(tmp_path / "mine", model)([picture])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"views": 2, "overrides": {"teacher#size": 64}}, "1 problem\n.*teacher#size: expected an id of this"),
        ({"overrides": {"treshold": 0.4}}, "did you mean 'threshold'"),
        ({"site": "site-1"}, "--site: expected a run, found a weights file"),
        ({"doubtful_below": 1.01, "runtime": "openvino"}, r"(?s)--flag-below: .*--runtime: expected an ONNX file, f"),
        *(({"doubtful_below": share}, "--flag-below: expected a Dice in ") for share in (-0.1, float("nan"))),
    ],
)
def test_invalid_arguments_are_refused(tmp_path, picture, options, message):
    with pytest.raises(Refused, match=message):
        Predictor("samfed_skin", small_model(tmp_path / "w.safetensors"), **options)([picture])


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


def data(folder: Path, datalist: Path | None = None) -> list[str]:
    return ["--datalist", str(datalist or folder / "list.json"), "--data-root", str(folder / "images")]


@pytest.fixture
def with_teacher(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """``evaluate`` or ``infer`` with the adapter, into the folder ``scores`` or ``masks``."""
    monkeypatch.setenv("SAMFED_WEIGHTS", str(work))

    def run(command: str, *words: str, model: Path = work / "teacher.safetensors", **replaced: Path) -> int:
        given = {
            "evaluate": [*data(work, **replaced), "--output-dir", str(tmp_path / "scores")],
            "infer": [str(work / "images" / "site-1" / "images"), "--output-dir", str(tmp_path / "masks")],
        }
        return main([command, str(BUNDLE), *given[command], "--model", str(model), *words])

    return run


def teacher(work: Path, views: int = 1) -> Teacher:
    return Teacher.load("vit_t", work / "mobile_sam.pt", work / "teacher.safetensors", size=64, views=views)


def test_teacher_scores_match_federation_scores(with_teacher, work, tmp_path, capsys):
    assert with_teacher("evaluate", "--image_size", "64") == 0
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
        assert [float(row["dice"]) for row in rows] == [pytest.approx(row["dice"], abs=0.01) for row in own]
    assert open_to_others(tmp_path / "scores") == []
    found = read_json(tmp_path / "scores" / "metrics.json")
    assert found["average"]["n"] == 6
    assert 0 < found["average"]["dice"] < 1
    about = {name: found["teacher"][name] for name in ("adapt", "base", "size", "views", "sha256")}
    assert about == {"adapt": "lora", "base": "vit_t", "size": 64, "views": 1, "sha256": fitted.sha256}
    assert set(found["teacher"]["after"]) == {"held_out", "site-1", "site-2"}
    assert (found["model"], found["split"]) == ("teacher.safetensors", "test")


def test_teacher_evaluation_uses_site_split_views_and_settings(with_teacher, work, tmp_path):
    words = ["--site", "site-2", "--split", "validation", "--views", "2", "--limit", "1", "--image_size", "64"]
    assert with_teacher("evaluate", *words, "--validate#scores#pooled", "true") == 0
    found = read_json(tmp_path / "scores" / "metrics.json")
    assert list(found["sites"]) == ["site-2"]
    assert found["average"]["n"] == 1
    assert found["convention"]["hd95"] == "pooled"
    assert (found["teacher"]["views"], found["teacher"]["sha256"]) == (2, teacher(work, 2).sha256)


def test_slices_of_volumes_are_scored_as_volumes(with_teacher, work, tmp_path):
    listed = DataList.load(work / "list.json")
    site, spacing = listed.sites["site-1"], (1.0, 1.0, 2.0)
    slices = [replace(each, volume="v", slice=n, spacing=spacing) for n, each in enumerate(site.test, start=1)]
    replace(listed, sites={"site-1": replace(site, test=slices)}).save(tmp_path / "volumes.json")
    assert with_teacher("evaluate", "--image_size", "64", datalist=tmp_path / "volumes.json") == 0
    found = read_json(tmp_path / "scores" / "metrics.json")["sites"]["site-1"]
    assert (found["n"], found["volumes"]["n"], found["volumes"]["measured"]) == (3, 1, 1)


def test_teacher_masks_match_probabilities_and_image_size(with_teacher, work, tmp_path, capsys):
    assert with_teacher("infer", "--probabilities", "--views", "2") == 0
    fitted = teacher(work, 2)
    for record in load_records(DataList.load(work / "list.json"), work / "images", split="test", site="site-1"):
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
    assert with_teacher("infer", "--views", "4") == 2, "other views are another inference"
    assert "inference.json -> model_sha256: expected" in capsys.readouterr().err


def test_damaged_or_mismatched_teacher_is_refused(with_teacher, work, tmp_path, monkeypatch, capsys):
    (tmp_path / "torn.safetensors").write_bytes((work / "teacher.safetensors").read_bytes()[:-1000])
    assert with_teacher("evaluate", model=tmp_path / "torn.safetensors") == 2
    assert "torn.safetensors: expected a teacher's adapter, found" in capsys.readouterr().err
    assert with_teacher("evaluate", "--teacher#size", "128") == 2
    message = "teacher.safetensors -> size: expected 128, found 64; set size of teacher.json to 64"
    assert message in capsys.readouterr().err
    (tmp_path / "other").mkdir()
    fake_checkpoint(tmp_path / "other" / "mobile_sam.pt", seed=1)
    monkeypatch.setenv("SAMFED_WEIGHTS", str(tmp_path / "other"))
    assert with_teacher("infer") == 2
    assert "teacher.safetensors -> base_sha256: expected" in capsys.readouterr().err
    assert not (tmp_path / "masks").exists()
    monkeypatch.setenv("SAMFED_WEIGHTS", str(tmp_path))
    assert with_teacher("infer") == 2
    assert "run `samfed weights mobile_sam" in capsys.readouterr().err


def test_teacher_option_errors_are_refused_together(with_teacher, capsys):
    assert with_teacher("evaluate", "--image_sise", "64", "--teacher#view", "2") == 2
    error = capsys.readouterr().err
    assert "did you mean 'image_size'" in error
    assert "command line -> teacher#view: expected an id of this workflow, found an unknown id; did you mean" in error
    assert with_teacher("infer", "--teacher#views", "2", "--views", "4") == 2
    assert "--views: expected one of the two, found --teacher#views as well" in capsys.readouterr().err
    assert with_teacher("evaluate", "--site", "site-9") == 2
    assert "site-9" in capsys.readouterr().err


def test_student_is_scored_over_views_and_folder_is_protected(work, tmp_path, capsys, monkeypatch):
    given, dice = {"site": "site-1", "limit": "2", "model": str(small_model(tmp_path / "student.safetensors"))}, []

    def scored(output: Path, **more: str) -> int:
        words = (word for name, value in {**given, **more}.items() for word in (f"--{name}", value))
        return main(["evaluate", str(BUNDLE), *data(work), "--output-dir", str(output), *words])

    for views in ({}, {"views": "1"}, {"views": "4"}):
        output = tmp_path / str(len(dice))
        assert scored(output, **views) == 0
        dice.append(read_json(output / "metrics.json")["average"]["dice"])
    assert dice[0] == dice[1] != dice[2]
    before = (output / "metrics.json").read_bytes()
    save_tensors(tmp_path / "b.safetensors", {"a": torch.zeros(1)})
    for more, message in (
        ({"model": str(tmp_path / "b.safetensors")}, "model: expected "),
        ({"split": "validation"}, "split: expected validation for this run, found test; choose another --output-dir"),
        ({"site": "site-2"}, "site: expected site-2 for this run, found site-1"),
        ({"limit": "1"}, "limit: expected 1 for this run, found 2"),
        ({"views": "2"}, "views: expected 2 for this run, found 4"),
    ):
        assert scored(output, **views | more) == 2
        assert f"{output}/evaluation.json -> {message}" in capsys.readouterr().err
    assert (output / "metrics.json").read_bytes() == before
    with monkeypatch.context() as stopped:
        stopped.setattr(SiteEvaluation, "_evaluate_site", lambda *_: 1 / 0)
        assert scored(output, **views) == 1
    assert not (output / "metrics.json").exists(), "a table may be another one by now"
    assert scored(output, **views) == 0
    assert (output / "metrics.json").read_bytes() == before
    (output / "evaluation.json").unlink()
    assert scored(output, **views) == 2
    assert "or evaluation.json beside them, found metrics.json and 1 more" in capsys.readouterr().err
    (output / "metrics.json").rename(tmp_path / "aside")
    next(output.glob("*/*/scores.csv")).unlink()
    write_json(output / "evaluation.json", {"limit": "of an evaluation that scored nothing"})
    assert scored(output, **views) == 0


def test_scoring_settings_follow_run_and_bundle(tmp_path):
    validate = {"scores": {"_target_": "x", "pooled": True}, "inferer": {"enabled": "auto"}, "dataset": "@images"}
    settings = {"label_resize": "nearest", "validate#scores#pooled": True, "validate#inferer#enabled": "auto"}
    assert scored_as({"config": {"client": {"label_resize": "nearest", "validate": validate}}}) == settings
    assert scored_as({}) == scored_as({"config": {"client": {"validate": {"inferer": {"enabled": "@amp"}}}}}) == {}
    own = shutil.copytree(BUNDLE, tmp_path / "own")

    def edited(name, **options):
        path = own / "configs" / name
        write_json(path, read_json(path) | options)
        return scoring_hash(own)

    usual = scoring_hash(BUNDLE)
    assert edited("train.json", learning_rate=0.5, data_root="here") == usual
    assert edited("train.json", label_resize="nearest") != usual


def test_model_without_weights_is_not_evaluated(tmp_path, capsys):
    own = shutil.copytree(find_bundle("samfed_polyp"), tmp_path / "own", ignore=shutil.ignore_patterns("model.*"))
    words = ["evaluate", str(own), "--datalist", "list.json", "--data-root", ".", "--output-dir", str(tmp_path)]
    assert main(words) == 2
    assert "expected a model, as own ships no weights, found none; name a model: a fin" in capsys.readouterr().err
    message = "--model: expected a run or weights: only `samfed infer` runs ONNX files, found a.onnx; name"
    with pytest.raises(Refused, match=message):
        TrainedModel("samfed_skin", tmp_path / "a.onnx").weights()
