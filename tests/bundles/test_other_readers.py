"""The bundles as MONAI Label and MONAI Deploy read them: preprocessing, inferer and postprocessing, one by one.

Label applies the transforms of ``inference.json`` to a path; Deploy leaves out those that are called ``LoadImage`` and
hands over pixels with their metadata. Both must come to the masks that ``samfed infer`` writes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor, set_track_meta
from PIL import Image

from samfed_monai.cli.main import main
from samfed_monai.core.io import safe_load
from tests.inference.models import small_model

from .conftest import BUNDLES

HEIGHT, WIDTH = 37, 50
BUNDLE = BUNDLES[0]  # their inference.json is the same


@pytest.fixture(autouse=True)
def tracked():
    set_track_meta(True)  # as MONAI comes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image, weights, and the mask that ``samfed infer`` makes of them."""
    made = tmp_path_factory.mktemp("made")
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(made / "a.png")
    words = ["--model", str(small_model(made / "w.safetensors")), "--output-dir", str(made / "out")]
    assert main(["infer", str(BUNDLE), str(made / "a.png"), *words]) == 0
    return made


@pytest.fixture
def reader() -> ConfigParser:
    parser = ConfigParser()
    parser.read_config(BUNDLE / "configs" / "inference.json")
    parser.update({"network_name": "basic_unet", "image_size": 32, "bundle_root": str(BUNDLE)})
    return parser


@pytest.mark.parametrize("program", ["label", "deploy"])
def test_label_and_deploy_masks_match_samfed_infer(reader, folder, program):
    network = reader.get_parsed_content("network_def").eval()
    network.load_state_dict(safe_load(folder / "w.safetensors"))
    transforms = list(reader.get_parsed_content("preprocessing").transforms)
    item: dict[str, Any] = {"image": str(folder / "a.png")}
    if program == "deploy":  # which has read the pixels itself
        transforms.remove(*[transform for transform in transforms if "LoadImage" in type(transform).__name__])
        item = {"image": MetaTensor(torch.from_numpy(np.asarray(Image.open(folder / "a.png")).astype(np.float32)))}
    for transform in transforms:
        item = transform(item)
    with torch.no_grad():
        item["pred"] = reader.get_parsed_content("inferer")(item["image"][None], network)[0]
    for transform in reader.get_parsed_content("postprocessing").transforms:
        item = transform(item)
    pred, ours = item["pred"], np.asarray(Image.open(folder / "out" / "a.png")) > 0
    assert pred.shape == (1, HEIGHT, WIDTH)
    assert pred.dtype == torch.uint8, "viewers write pictures of whole numbers only"
    assert set(pred.unique().tolist()) == {0, 1}, "both kinds of pixels, so that a wrong mask shows"
    assert np.array_equal(pred[0].numpy() > 0, ours)


def test_postprocessing_uses_named_transforms_and_threshold(reader):
    names = [type(transform).__name__ for transform in reader.get_parsed_content("postprocessing").transforms]
    assert names == ["InvertResized", "Activationsd", "CopyItemsd", "AsDiscreted", "CastToTyped"]
    assert reader.get("postprocessing#transforms#3#threshold") == "@threshold"
