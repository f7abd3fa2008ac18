"""``samfed export``: what is written predicts the same, runs without this package, and is whole or not there."""

from __future__ import annotations

import contextlib
import csv
import functools
import importlib.util
import io
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow
from PIL import Image

from samfed_monai.cli.export import around_problems, model_of
from samfed_monai.cli.main import main
from samfed_monai.config import bundle_of_command, find_bundle
from samfed_monai.core.errors import Refused
from samfed_monai.core.io import read_json, safe_load, save_tensors
from samfed_monai.inference import Predictor, export
from samfed_monai.inference.export import Measured, OnnxNetwork, exported_metadata, table_of
from samfed_monai.metrics.quality import Calibration, Quality, quality_of, write_quality
from samfed_monai.networks import client_network
from tests.inference.models import ORGANS, small_model

MISSING = [name for name in export.PACKAGES if importlib.util.find_spec(name) is None]
needs_onnx = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)} (extra export)")
ENDINGS = {"torchscript": ".ts", "pt2": ".pt2", "onnx": ".onnx", "bundle": "_bundle"}
HALF = Quality(Calibration((0.0, 1.0), (0.0, 0.5), 0.2, 40))
WITHOUT_US = """
import os, sys
sys.modules["samfed_monai"] = None  # an import of it fails
from monai.bundle import run
for bundle, images, masks in zip(*[iter(sys.argv[1:])] * 3):
    os.chdir(bundle)
    run(config_file="configs/inference.json", meta_file="configs/metadata.json", bundle_root=".", dataset_dir=images,
        output_dir=masks)
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network whose masks are promised half of what they seem."""
    path = small_model(tmp_path_factory.mktemp("model") / "small.safetensors")
    write_quality(HALF, path)
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    (folder / "deep").mkdir()
    generator = np.random.default_rng(0)
    turned = Image.Exif()
    turned[0x0112] = 6
    for name, size, exif in (("a.png", (40, 60), None), ("deep/b.jpg", (33, 70), turned)):
        picture = Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8))
        picture.save(folder / name, **({"exif": exif} if exif else {}))
    return folder


@pytest.fixture(scope="module")
def exported(model, images, tmp_path_factory) -> Callable[[str], tuple[Path, str]]:
    """Exports a form once: its file, by the name that it has if none is given, and what the command printed."""

    @functools.cache
    def export_to(form: str) -> tuple[Path, str]:
        folder = tmp_path_factory.mktemp(form)
        words = ["--images", str(images)] if form == "onnx" else []
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
            patch.chdir(folder)
            assert main(["export", str(model), "--to", form, *words]) == 0
        (file,) = folder.iterdir()
        assert file.name == f"small{ENDINGS[form]}"
        return file, printed.getvalue()

    return export_to


@pytest.fixture(scope="module")
def drawn_by(images, tmp_path_factory) -> Callable[[Path], Path]:
    """Masks of a model by `samfed infer`, once, with probabilities, in a folder; their areas are in a table beside."""

    @functools.cache
    def draw(model: Path) -> Path:
        folder = tmp_path_factory.mktemp("drawn")
        words = ["--model", str(model), "--output-dir", str(folder), "--probabilities", "--areas", f"{folder}.csv"]
        assert main(["infer", "samfed_skin", str(images), *words]) == 0
        return folder

    return draw


def batch(size: int) -> torch.Tensor:
    return torch.rand(size, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("to", ["torchscript", "pt2", pytest.param("onnx", marks=needs_onnx)])
def test_program_predicts_same_for_any_batch_size(to, model, exported):
    file, printed = exported(to)
    lines = printed.splitlines()
    assert lines[0] == ("2 images" if to == "onnx" else "8 synthetic images") + " of 32 x 32 px"
    assert [line.split("  ")[0] for line in lines[2:4]] == ["torch, float32", f"{to}, float32"]
    assert lines[3].split()[-3:] == ["0.000", "%", "1.0000"]
    assert lines[-1] == file.name
    load = {"torchscript": torch.jit.load, "pt2": lambda file: torch.export.load(file).module(), "onnx": OnnxNetwork}
    program, network = load[to](file), client_network("basic_unet").eval()
    network.load_state_dict(safe_load(model))
    with torch.no_grad():
        for size in (1, 2, 5):
            assert (program(batch(size)) - network(batch(size))).abs().max() <= export.SAME_LOGITS


def _documented(words: str) -> str:
    """The Python block of docs/export.md that holds some words."""
    page = (Path(__file__).parents[2] / "docs" / "export.md").read_text(encoding="utf-8")
    (block,) = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if words in block]
    return block


USAGE = (
    "input: RGB / 255, (B, 3, 32, 32) float32, the image resized with mode area; output: logits, to be resized to the "
    "image bilinearly (align_corners false); then sigmoid; foreground is 0.5 or more"
)


@needs_onnx
@pytest.mark.parametrize("form", ["torchscript", "pt2", "onnx", "bundle", "safetensors"])
def test_documented_code_reproduces_infer_masks(form, model, images, exported, drawn_by):
    import onnxruntime

    names: dict = {}
    exec(_documented("def mask_of") + _documented("def torchscript"), names)
    file, extra = model if form == "safetensors" else exported(form)[0], {"usage": "", "quality": ""}
    program = [file / "models" / "model.ts"] if form == "bundle" else [file]
    program += ["basic_unet"] if form == "safetensors" else []
    network = names["torchscript" if form == "bundle" else form](*map(str, program))
    for name in ("a.png", "deep/b.jpg"):
        theirs = names["mask_of"](network, images / name, 32)
        drawn = np.asarray(Image.open((drawn_by(model) / name).with_suffix(".png"))) > 0
        assert theirs.shape == drawn.shape
        assert (theirs != drawn).mean() <= 0.001, "logits differ by 1e-5"
    if form == "onnx":
        extra = onnxruntime.InferenceSession(str(file)).get_modelmeta().custom_metadata_map
    elif form == "torchscript":
        torch.jit.load(file, _extra_files=extra)
    elif form == "pt2":
        torch.export.load(file, extra_files=extra)
    elif form == "bundle":
        extra = json.loads((file / "configs" / "metadata.json").read_text())
    if form != "safetensors":  # this one was written without a run; that of a run is in test_run_models.py
        texts = {key: each.decode() if isinstance(each, bytes) else each for key, each in extra.items()}
        assert (texts["usage"], quality_of(texts["quality"], "x")) == (USAGE, HALF)


@needs_onnx
def test_onnx_reproduces_calibrated_masks_of_network(exported, model, drawn_by, images, tmp_path, capsys):
    """Without the property they are estimated, and reported as not calibrated; another content is refused."""
    import onnx

    file = tmp_path / "net.onnx"
    shutil.copy(exported("onnx")[0], file)
    assert OnnxNetwork(file).quality == HALF
    theirs, ours = drawn_by(file), drawn_by(model)
    names = sorted(path.relative_to(theirs).as_posix() for path in theirs.rglob("*.png"))
    assert names == ["a.png", "a.probability.png", "deep/b.png", "deep/b.probability.png"]
    for name in names:
        found, wanted = (np.array(Image.open(folder / name), dtype=int) for folder in (theirs, ours))
        assert np.abs(found - wanted).max() <= (1 if "probability" in name else 0)  # rounding of 8 bits
    tables = [list(csv.DictReader(folder.with_suffix(".csv").open())) for folder in (ours, theirs)]
    for name in ("expected_dice", "lower_bound"):
        assert [row[name] for row in tables[0]] == [row[name] for row in tables[1]]
    made_with, of_weights = (json.loads((folder / "inference.json").read_text()) for folder in (theirs, ours))
    assert made_with["image_size"] == 32
    assert made_with["model_sha256"] != of_weights["model_sha256"]
    four = [Predictor("samfed_skin", each, views=4) for each in (file, model)]
    four[0].write(str(images), tmp_path / "four")
    assert json.loads((tmp_path / "four" / "inference.json").read_text())["views"] == 4
    for found, wanted in zip(*(each(images) for each in four), strict=True):
        assert np.array_equal(found.mask, wanted.mask)
        assert np.abs(found.probability - wanted.probability).max() <= 1e-4
    content = onnx.load(file)
    onnx.helper.set_model_props(content, {"quality": "{}"})
    onnx.save(content, file)
    with pytest.raises(Refused, match=r"net\.onnx -> quality.*: expected .*a model's quality, .* export the network"):
        OnnxNetwork(file)
    onnx.helper.set_model_props(content, {})
    onnx.save(content, file)
    capsys.readouterr()
    assert main(["infer", "samfed_skin", str(images), "--model", str(file), "--output-dir", str(tmp_path / "old")]) == 0
    assert "(expected Dice below 0.7, not calibrated)" in capsys.readouterr().out


@needs_onnx
def test_options_fixed_by_onnx_file_are_refused(exported, images, tmp_path, capsys):
    words = ["--model", str(exported("onnx")[0]), "--output-dir", str(tmp_path / "masks")]
    for options, messages in (
        (["--network_name", "segresnet"], ["network_name: expected an option that this command reads"]),
        (["--classes", "['a', 'b']"], ["classes: expected an option that this command reads"]),
        (
            ["--image_size", "64", "--amp", "auto"],
            ["--image_size: expected none: small.onnx has a fixed value, found 64", "--amp: expected none"],
        ),
        (["--device", "meta"], ["--device"]),
    ):
        assert main(["infer", "samfed_skin", str(images), *words, *options]) == 2
        error = capsys.readouterr().err
        assert [each for each in messages if each not in error] == []
    assert not (tmp_path / "masks").exists()


@needs_onnx
def test_int8_requires_convertible_products_and_equal_masks(model, exported, tmp_path, monkeypatch, capsys):
    network, output = torch.nn.Sequential(torch.nn.Conv2d(3, 1, 1), torch.nn.Linear(32, 32)), tmp_path / "net.onnx"
    options = {"images": batch(2), "int8": True, "quality": HALF}
    monkeypatch.setattr(export, "SAME_MASKS", 1.1)
    with pytest.raises(Refused, match=r"--int8: expected at least 1\.1, found a Dice of "):
        export.export_network(network, "onnx", output, **options)
    monkeypatch.setattr(export, "SAME_MASKS", 0.9)
    rows = [row.name for row in export.export_network(network, "onnx", output, **options)]
    assert rows[:3] == ["torch, float32", "onnx, int8", "onnx, float32"]
    assert OnnxNetwork(output).quality == HALF
    float32 = exported("onnx")[0]  # made once, as it takes long
    monkeypatch.setitem(export.FORMATS, "onnx", (".onnx", lambda *given: OnnxNetwork(shutil.copy(float32, given[1]))))
    assert main(["export", str(model), "--to", "onnx", "--int8", "--output", str(tmp_path / "none.onnx")]) == 2
    assert "--int8: expected matrix products to convert, found a network without any; leave" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [output]


@pytest.mark.parametrize("to", ["torchscript", "pt2"])
def test_fault_81_full_disk_stops_export_without_files(model, exported, tmp_path, monkeypatch, capsys, to):
    if to == "pt2":  # made once, as it takes long
        program = torch.export.load(exported(to)[0])
        monkeypatch.setattr(export, "_program", lambda *_: program)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))  # what torch itself writes would abort the process
    try:
        assert main(["export", str(model), "--to", to, "--output", str(tmp_path / f"net{ENDINGS[to]}")]) == 3
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    full = f"stopped: the disk is full ({tmp_path}/net{ENDINGS[to]}); completed work is kept\n  to continue: make room"
    assert full in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "bundle"),
    [
        ("samfed federate samfed_polyp --rounds 3", "samfed_polyp"),
        ("/opt/bin/samfed flare simulate 'my bundle' --rounds 3", "my bundle"),
        ("samfed federate --rounds 3", None),
        ("python -m monai.bundle run", None),
        ("__main__.py run --config_file '[/b/skin/configs/train.json,/b/skin/configs/federate.json]'", "/b/skin"),
        (None, None),
    ],
)
def test_bundle_is_read_from_run_command(command, bundle):
    assert bundle_of_command(command) == bundle


def test_model_name_resolves_to_bundle_or_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert model_of("samfed_polyp", None).path.parts[-3:] == ("samfed_polyp", "models", "model.pt")
    assert model_of("samfed_polyp", "samfed_skin").path == tmp_path / "samfed_polyp"
    assert model_of(str(find_bundle("samfed_polyp")), None).bundle == find_bundle("samfed_polyp")
    (tmp_path / "run").mkdir()
    results = {"models": {"best": {"round": 0}}, "selected": "best"}
    for command, found in {"": "none in its command", "mine": "mine, which is not here", "samfed_polyp": ""}.items():
        results["command"] = f"samfed federate {command} --rounds 1"
        (tmp_path / "run" / "results.json").write_text(json.dumps(results))
        if found:
            with pytest.raises(Refused, match=f"expected the bundle of run, found {found}; add --bundle"):
                model_of("run", None)
            assert model_of("run", "samfed_skin").bundle.name == "samfed_skin"
        if command == "mine":
            assert main(["init", "samfed_skin", "mine"]) == 0
        assert not command or model_of("run", None).bundle.name == command


@pytest.fixture(scope="module")
def without_us(exported, organs, images, tmp_path_factory) -> dict[str, tuple[Path, Path]]:
    """Two exported bundles, each with the masks that MONAI alone draws by it, in one process for both."""
    folder = tmp_path_factory.mktemp("without_us")
    assert main(["export", str(organs), "--to", "bundle", "--output", str(folder / "organs")]) == 0
    made = {"one": (exported("bundle")[0], folder / "masks"), "organs": (folder / "organs", folder / "organs_masks")}
    words = [str(word) for bundle, masks in made.values() for word in (bundle, images, masks)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-W", "ignore", "-c", WITHOUT_US, *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return made


def test_exported_bundle_runs_without_package(without_us, model, drawn_by):
    bundle, masks = without_us["one"]
    assert not (bundle / "LICENSE").exists(), "the network's owner is unknown here"
    for name, size in (("a.png", (60, 40)), ("deep/b.png", (33, 70))):
        with Image.open(masks / name) as theirs, Image.open(drawn_by(model) / name) as drawn:
            assert theirs.size == drawn.size == size
            assert 0 < np.asarray(drawn).mean() < 255
            assert np.array_equal(np.asarray(theirs), np.asarray(drawn))


@pytest.fixture(scope="module")
def organs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model(tmp_path_factory.mktemp("organs") / "organs.safetensors", classes=ORGANS)


def test_exported_bundle_of_classes_matches_infer(without_us, organs, drawn_by):
    bundle, masks = without_us["organs"]
    for name in ("a.png", "deep/b.png"):
        theirs, expected = (np.asarray(Image.open(folder / name)) for folder in (masks, drawn_by(organs)))
        assert set(np.unique(expected)) == {0, 1, 2}
        assert np.array_equal(theirs, expected)
    described = json.loads((bundle / "configs/metadata.json").read_text())["network_data_format"]["outputs"]["pred"]
    assert (described["num_channels"], described["channel_def"]["2"]) == (3, "spleen")
    assert "One PNG mask (0 background, 1 kidney, 2 spleen)" in (bundle / "docs/README.md").read_text()


@pytest.fixture(scope="module")
def organs_onnx(organs, tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("organs") / "organs.onnx"
    assert main(["export", str(organs), "--to", "onnx", "--output", str(file)]) == 0
    return file


@needs_onnx
def test_onnx_file_stores_class_names(organs, organs_onnx, drawn_by):
    masks = [np.asarray(Image.open(drawn_by(file) / "a.png")) for file in (organs_onnx, organs)]
    assert set(np.unique(masks[0])) == {0, 1, 2}
    assert (masks[0] != masks[1]).mean() < 0.001
    assert drawn_by(organs_onnx).with_suffix(".csv").read_text().splitlines()[1].endswith("kidney")


@needs_onnx
def test_openvino_runs_onnx_file_and_is_recorded(organs_onnx, drawn_by, tmp_path, images, capsys):
    pytest.importorskip("openvino", reason="openvino is not installed (extra openvino)")
    command = ["infer", "samfed_skin", str(images), "--output-dir", str(tmp_path), "--model", str(organs_onnx)]
    assert main([*command, "--runtime", "openvino"]) == 0
    drawn, expected = (np.asarray(Image.open(folder / "a.png")) for folder in (tmp_path, drawn_by(organs_onnx)))
    assert set(np.unique(drawn)) == {0, 1, 2}
    assert (drawn != expected).mean() < 0.01
    assert json.loads((tmp_path / "inference.json").read_text())["runtime"] == "openvino"
    assert "runtime" not in json.loads((drawn_by(organs_onnx) / "inference.json").read_text())
    capsys.readouterr()
    assert main(command) == 2
    assert "inference.json -> runtime: expected nothing for this run, found openvino" in capsys.readouterr().err


def test_classes_are_compared_by_largest_logit():
    planes = torch.tensor([[[0.0, 2.0, 0.0, 1.0]], [[1.0, 0.0, 0.0, 2.0]], [[0.0, 1.0, 3.0, 0.0]]])
    logits = planes.expand(2, -1, -1, -1)  # class values 1, 0, 2, 1
    changed = logits.clone()
    changed[:, 0, 0, 0], changed[:, 2, 0, 3] = 5.0, 5.0  # 0, 0, 2, 2
    row = export._measure("x", 1.0, lambda images: changed[: len(images)], torch.zeros(2, 3, 1, 4), logits, 0.5)
    assert (row.pixels, row.dice, row.difference) == (0.5, pytest.approx(2 * 1 / (3 + 2)), 5.0)


@pytest.mark.parametrize(("threshold", "pixels"), [(0.5, 0.0), (0.3, 0.25), (0.1, 0.0)])
def test_masks_are_compared_at_threshold(threshold, pixels):
    logits = torch.tensor([-2.0, -1.0, -0.5, 1.0]).view(1, 1, 1, 4).expand(2, -1, -1, -1)  # 0.12, 0.27, 0.38, 0.73
    run = lambda images: logits[: len(images)] + torch.tensor([0.0, 0.5, 0.0, 0.0])  # noqa: E731 - 0.27 becomes 0.38
    assert export._measure("x", 1.0, run, torch.zeros(2, 3, 1, 4), logits, threshold).pixels == pixels


def test_exported_bundle_passes_monai_property_check(model, images, tmp_path, monkeypatch, capsys):
    words = ["--to", "bundle", "--output", str(tmp_path / "mine"), "--threshold", "0.7"]
    assert main(["export", str(model), *words, "--images", str(images / "a.png")]) == 0
    assert capsys.readouterr().out.startswith("2 images of"), "a single one is taken twice"
    configs = tmp_path / "mine" / "configs"
    monkeypatch.chdir(tmp_path / "mine")
    files = str(configs / "inference.json"), str(configs / "metadata.json")
    workflow = ConfigWorkflow(*files, logging_file=False, workflow_type="infer")
    workflow.initialize()
    assert workflow.check_properties() == []
    content = json.loads((configs / "inference.json").read_text())
    assert (content["threshold"], content["image_size"]) == (0.7, 32)


def test_metadata_of_other_network_omit_scores_and_authors():
    shape = {"spatial_shape": [224, 224]}
    metadata = {"authors": "us", "eval_metrics": {"mean_dice": 0.893}}
    metadata |= {"required_packages_version": {"timm": "1", "pillow": "13"}}
    metadata |= {"network_data_format": {"inputs": {"image": shape}, "outputs": {"pred": shape}}}
    own, shipped = (exported_metadata(metadata, 64, shipped=shipped) for shipped in (False, True))
    assert (own["eval_metrics"], own["authors"]) == ({}, "to be filled in by the authors of the network")
    assert (shipped["eval_metrics"], shipped["authors"]) == ({"mean_dice": 0.893}, "us")
    assert shipped["required_packages_version"] == {"pillow": "13"}
    assert shipped["network_data_format"]["outputs"]["pred"]["spatial_shape"] == [64, 64]
    assert shape == {"spatial_shape": [224, 224]}, "left as they were"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--to", "pt2", "--image_size", "64"], "image_size: expected 32, used to train small.safetensors, found 64"),
        (["--to", "pt2", "--int8"], "--int8: expected --to onnx: only ONNX Runtime has a quantiser, found --to pt2"),
        (["--to", "pt2", "--network_name", "lite0_fpn"], "network_name: expected 'basic_unet'"),
        (["--to", "pt2", "--preprocessing#transforms#2#b_max", "2"], "b_max: expected 1, as in the packaged bundles"),
        (["--to", "pt2", "--threshold", "0.3", "--classes", "['a', 'b']"], "--threshold: expected 0.5 with several"),
        (["--to", "onnx"], "found no package no_such_package; pip install 'samfed-monai[export]'"),
        (["--to", "pt2", "--output", "net.onnx"], "--output: expected a name that ends in .pt2, found net.onnx"),
        (["--to", "torchscript", "--output", "there"], "there, which exists; choose another name"),
    ],
)
def test_refused_export_writes_nothing(words, message, model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("there").write_text("something else")
    monkeypatch.setattr(export, "PACKAGES", ("torch", "no_such_package"))
    assert main(["export", str(model), *words]) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    assert Path("there").read_text() == "something else"


def test_edits_around_network_are_reported():
    content = read_json(find_bundle("samfed_skin") / "configs" / "inference.json") | {"image_size": 32, "amp": True}
    content["preprocessing"]["transforms"][3]["spatial_size"] = [32, 32]  # as @image_size says it
    assert list(around_problems(content)) == []
    content["views"], content["postprocessing"]["transforms"][3]["threshold"] = 4, 0.7
    assert [each.where.rpartition("#")[2] for each in around_problems(content)] == ["views", "threshold"]


def test_unsupported_network_writes_nothing(tmp_path, capsys):
    file, out = tmp_path / "flexible.safetensors", tmp_path / "out"
    header = {"network_name": "flexible_unet_resnet18", "image_size": "32"}
    save_tensors(file, client_network("flexible_unet_resnet18").state_dict(), header)
    assert main(["export", str(file), "--to", "torchscript", "--output", str(out / "net.ts")]) == 2
    error = capsys.readouterr().err
    assert "--to torchscript: expected a network that this format supports, found FlexibleUNet (" in error
    assert list(out.iterdir()) == []


def test_deviating_program_is_deleted(model, tmp_path, monkeypatch, capsys):
    load = torch.jit.load
    monkeypatch.setattr(torch.jit, "load", lambda path: lambda images: load(path)(images) + 0.5)
    assert main(["export", str(model), "--to", "torchscript", "--output", str(tmp_path / "net.ts")]) == 2
    assert "--to torchscript: expected at most " in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("to", "message"), [("onyx", "to: expected one of .*onnx"), ("bundle", "bundle=FOLDER")])
def test_invalid_arguments_raise_before_export(to, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        export.export_network(torch.nn.Identity(), to, tmp_path / "x", images=batch(2))
    assert list(tmp_path.iterdir()) == []


def test_table_has_row_per_form():
    rows = [Measured("torch, float32", 20.88, 3.04), Measured("int8", 5.0, 12.25, 0.52, 0.0011, 0.99712)]
    assert table_of(rows).splitlines() == [
        "form            MB    images/s  logits differ by  mask pixels differ  Dice to float32",
        "torch, float32  20.9  3.0       0.0e+00           0.000 %             1.0000",
        "int8            5     12.2      5.2e-01           0.110 %             0.9971",
    ]


def doubling(path: Path, given: list[object], made: list[object], kind: str = "float") -> Path:
    """A file whose only channel of logits is twice the first of the images."""
    import onnx

    image, logits = (f"{kind}[{','.join(map(str, shape))}]" for shape in (given, made))
    model = f'<ir_version: 9, opset_import: ["": 17]> doubling ({image} image) => ({logits} logits)'
    nodes = "start = Constant <value_ints = [0]> () one = Constant <value_ints = [1]> ()"
    nodes += " first = Slice (image, start, one, one) logits = Add (first, first)"
    onnx.save(onnx.parser.parse_model(f"{model} {{{nodes}}}"), path)
    return path


@needs_onnx
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_onnx_logits_match_for_any_batch(tmp_path, runtime):
    pytest.importorskip(runtime, reason=f"{runtime} is not installed: pip install samfed-monai[export,openvino]")
    network = OnnxNetwork(doubling(tmp_path / "a.onnx", ["batch", 3, 4, 6], ["batch", 1, 4, 6]), runtime)
    assert isinstance(network, torch.nn.Module)
    assert network.size == (4, 6)
    for number in (1, 3):
        images = torch.randint(8, (number, 3, 4, 6)) / 4
        assert torch.equal(network(images), 2 * images[:, :1])


@needs_onnx
@pytest.mark.parametrize(
    ("given", "made", "kind", "found"),
    [
        (["b", 1, 4, 4], ["b", 1, 4, 4], "float", r"found tensor\(float\) \('b', 1, 4, 4\) -> "),
        (["b", 3, "h", "w"], ["b", 1, "h", "w"], "float", r"\('b', 3, 'h', 'w'\)"),
        (["b", 3, 4], ["b", 1, 4], "float", r"found tensor\(float\) \('b', 3, 4\)"),
        (["b", 3, 4, 4], ["b", 1, 4, 4], "double", r"found tensor\(double\)"),
    ],
)
def test_onnx_network_of_other_signature_is_refused(tmp_path, given, made, kind, found):
    path = doubling(tmp_path / "a.onnx", given, made, kind)
    with pytest.raises(Refused, match=rf"a\.onnx: expected float32 \(B, 3, H, W\) -> \(B, 1, H, W\), .*{found}"):
        OnnxNetwork(path)


@needs_onnx
def test_invalid_onnx_file_is_refused(tmp_path):
    (tmp_path / "a.onnx").write_text("no network")
    for name in ("a.onnx", "missing.onnx"):
        with pytest.raises(Refused, match=rf"{name}: expected an ONNX file, found "):
            OnnxNetwork(tmp_path / name)


def test_missing_package_and_unknown_runtime_are_reported(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="runtime: expected one of onnxruntime, openvino, found 'tensorrt'"):
        OnnxNetwork(tmp_path / "a.onnx", "tensorrt")
    monkeypatch.setattr(importlib.util, "find_spec", {}.get)
    with pytest.raises(Refused, match=r"to run it, found no such package; pip install 'samfed-monai\[export\]'"):
        OnnxNetwork(tmp_path / "a.onnx")
    monkeypatch.setattr(importlib.util, "find_spec", {"onnxruntime": object()}.get)
    with pytest.raises(Refused, match=r"expected openvino to run it, .*'samfed-monai\[openvino\]'"):
        OnnxNetwork(tmp_path / "a.onnx", "openvino")
