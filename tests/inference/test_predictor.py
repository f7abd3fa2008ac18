"""The predictor that Python shares with ``samfed infer`` and ``samfed evaluate``."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from samfed_monai.cli.main import main
from samfed_monai.core.errors import Refused
from samfed_monai.inference import Kind, Predictor
from tests.inference.models import ORGANS, small_model


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


@pytest.mark.parametrize("classes", [[], ORGANS])
def test_an_array_has_the_mask_that_infer_writes_of_its_file(tmp_path, picture, classes):
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


def test_overrides_and_views_count(tmp_path, picture):
    model = small_model(tmp_path / "w.safetensors")
    (once,) = Predictor("samfed_skin", model, overrides={"threshold": 0.3})([picture])
    assert np.array_equal(once.mask > 0, once.probability >= 0.3)
    (four,) = Predictor("samfed_skin", model, views=4)([picture])
    assert not np.array_equal(once.probability, four.probability)


@pytest.mark.parametrize("share", [1.01, -0.1, float("nan")])
def test_what_the_model_does_not_have_is_refused_together(tmp_path, share):
    model = small_model(tmp_path / "w.safetensors")
    with pytest.raises(Refused, match=r"(?s)--flag-below: expected a Dice, in .*--runtime: expected an ONNX file to"):
        Predictor("samfed_skin", model, doubtful_below=share, runtime="openvino")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"views": 2, "overrides": {"teacher#size": 64}},
            "1 problem\n.*teacher#size: expected an id that this workflow",
        ),
        ({"overrides": {"treshold": 0.4}}, "did you mean 'threshold'"),
        ({"site": "site-1"}, "--site: expected a run, found a weights file"),
    ],
    ids=["an option of a teacher", "a misspelt id", "a site"],
)
def test_an_argument_that_weights_do_not_take_is_refused(tmp_path, picture, options, message):
    with pytest.raises(Refused, match=message):
        Predictor("samfed_skin", small_model(tmp_path / "w.safetensors"), **options)([picture])
