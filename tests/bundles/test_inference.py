"""``inference.json``: masks have native size and the names of images, and no metadata of the images."""

from __future__ import annotations

import logging
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from samfed_monai.cli.main import main
from tests.inference.models import small_model

SIZES = {"a": (40, 60), "Läsion 7 (links)": (33, 20), "deep/er/b": (64, 64)}  # height, width
CANARY = "canary-patient-name"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model(tmp_path_factory.mktemp("model") / "global.safetensors")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images with metadata, and a file that is none."""
    folder = tmp_path_factory.mktemp("made")
    generator = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x010E] = CANARY  # ImageDescription
    exif[0x0112] = 1
    for name, (height, width) in SIZES.items():
        path = folder / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path, exif=exif, comment=CANARY.encode())
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture
def images(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "images"))


def infer(model: Path, images: Path, output: Path, *words: str) -> int:
    """``samfed infer`` by one bundle: the other's ``inference.json`` is the same but for the names of things."""
    return main(["infer", "samfed_skin", str(images), "--model", str(model), "--output-dir", str(output), *words])


@pytest.fixture(scope="module")
def masks(model: Path, made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the masks of all images are."""
    folder = tmp_path_factory.mktemp("masks")
    assert infer(model, made, folder) == 0
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_masks_have_native_size_and_image_names(masks):
    assert files(masks).keys() == {"inference.json", *(f"{name}.png" for name in SIZES)}
    for name, (height, width) in SIZES.items():
        with Image.open(masks / f"{name}.png") as mask:
            assert (mask.mode, mask.size) == ("L", (width, height))
            assert set(np.unique(np.asarray(mask))) <= {0, 255}


def test_fault_60_image_metadata_is_not_copied_and_masks_are_equal(masks, model, made, tmp_path, caplog, monkeypatch):
    # whoever calls the command first in a process has its records on standard error alone
    monkeypatch.setattr(logging.getLogger("samfed_monai"), "handlers", [logging.NullHandler()])
    shutil.copytree(masks, tmp_path / "out")
    assert infer(model, made, tmp_path / "out", "--probabilities") == 0
    assert files(masks).items() < files(tmp_path / "out").items()
    assert [text for text in caplog.messages if "mask" in text] == [f"3 masks in {tmp_path}/out"]
    assert CANARY.encode() in (made / "a.jpg").read_bytes()
    for path in (tmp_path / "out").rglob("*.png"):
        assert CANARY.encode() not in path.read_bytes()
        with Image.open(path) as mask:
            assert not mask.getexif()
            assert mask.info == {}


def test_final_message_counts_empty_masks_and_names_next_step(model, made, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("samfed_monai"), "handlers", [logging.NullHandler()])  # as above
    assert infer(model, made, tmp_path / "out", "--threshold", "0.999999") == 0
    assert f"3 masks in {tmp_path}/out, 3 of them are empty" in caplog.messages
    assert "next: look at them; --overlays DIR draws their outlines, --areas FILE.csv lists their areas" in caplog.text
    forms = ["--overlays", str(tmp_path / "looks"), "--areas", str(tmp_path / "areas.csv")]
    assert infer(model, made, tmp_path / "more", *forms) == 0
    assert f"overlays: {tmp_path}/looks; areas: {tmp_path}/areas.csv" in caplog.text


def test_fault_28_missing_weights_are_refused(made, tmp_path, capsys):
    assert infer(tmp_path / "none.safetensors", made, tmp_path / "out") == 2
    assert f"model: expected a weights file, found no file '{tmp_path}/none.safetensors'" in capsys.readouterr().err


def test_fault_19_bad_images_and_outside_links_are_refused(model, images, tmp_path, capsys):
    (images / "empty.png").write_bytes(b"")
    (images / "text.jpg").write_text("not an image")
    Image.new("RGB", (8, 8)).save(images / "a.png")
    assert infer(model, images, tmp_path / "out") == 2
    message = capsys.readouterr().err
    for part in ("empty.png", "text.jpg", "found a.jpg and a.png"):
        assert part in message
    Image.new("RGB", (8, 8)).save(tmp_path / "outside.png")
    (images / "link.png").symlink_to(tmp_path / "outside.png")
    assert infer(model, images, tmp_path / "out") == 2
    assert "found a link that leads out of the folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "IMAGES: expected images, patterns or folders, found none"),
        (["*.tiff"], r"\*\.tiff: expected images, or folders of images, found no file that matches"),
        (["c.jpg"], r"c\.jpg: expected a folder of images, or a file .* found no such .*; did you mean 'a\.jpg'\?"),
        (["notes.txt"], r"notes\.txt: expected a folder of images, or a file .* found a file of another kind"),
        (["a.jpg", "deep/a.jpg"], r"a: expected one image of that name, found .*a\.jpg and .*deep/a"),
    ],
)
def test_invalid_image_arguments_are_refused(model, images, tmp_path, capsys, words, message):
    (images / "deep" / "a.jpg").write_bytes((images / "a.jpg").read_bytes())
    named = [str(images / word) for word in words]
    assert main(["infer", "samfed_skin", *named, "--model", str(model), "--output-dir", str(tmp_path / "out")]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not list(tmp_path.glob("out/*.png"))


def test_bundle_model_is_used_by_default(bundle, made, tmp_path):
    words = ["--output-dir", str(tmp_path / "out"), "--image_size", "64", "--allow-other-size"]
    assert main(["infer", str(bundle), str(made / "a.jpg"), *words]) == 0
    assert Image.open(tmp_path / "out" / "a.png").size == (60, 40)
