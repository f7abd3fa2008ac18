"""The bundles as MONAI Label and MONAI Deploy read them: preprocessing, inferer and postprocessing, one by one.

Label applies the transforms of ``inference.json`` to a path; Deploy leaves out those that are called ``LoadImage`` and
hands over pixels with their metadata. Both must come to the masks that ``samfed infer`` writes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor, set_track_meta
from PIL import Image

from samfed_monai.cli.main import main
from samfed_monai.core.io import save_tensors
from samfed_monai.networks import client_network

from .conftest import BUNDLES

HEIGHT, WIDTH = 37, 50


@pytest.fixture(autouse=True)
def tracked():
    set_track_meta(True)  # as MONAI comes


@pytest.fixture
def bundle() -> Path:
    """One of them: their ``inference.json`` is the same."""
    return BUNDLES[0]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    (tmp_path / "in").mkdir()
    Image.fromarray(pixels).save(tmp_path / "in" / "a.png")
    return tmp_path / "in" / "a.png"


@pytest.fixture
def reader(bundle: Path) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config(bundle / "configs" / "inference.json")
    parser.update({"network_name": "basic_unet", "image_size": 32, "bundle_root": str(bundle)})
    return parser


def predicted(reader: ConfigParser, item: dict, transforms: list, weights: Path) -> torch.Tensor:
    """What Label and Deploy do with an item: ``pred`` after postprocessing, (1, H, W)."""
    from safetensors.torch import load_file

    network = reader.get_parsed_content("network_def").eval()
    network.load_state_dict(load_file(weights))
    for transform in transforms:
        item = transform(item)
    with torch.no_grad():
        item["pred"] = reader.get_parsed_content("inferer")(item["image"][None], network)[0]
    for transform in reader.get_parsed_content("postprocessing").transforms:
        item = transform(item)
    return item["pred"]


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "w.safetensors"
    save_tensors(path, client_network("basic_unet").state_dict(), {"network_name": "basic_unet", "image_size": "32"})
    return path


@pytest.fixture
def ours(bundle, image, weights, tmp_path) -> np.ndarray:
    """The mask of ``samfed infer``, (H, W) of 0 and 1."""
    words = ["infer", str(bundle), str(image), "--model", str(weights), "--output-dir", str(tmp_path / "out")]
    assert main(words) == 0
    set_track_meta(True)
    mask = np.asarray(Image.open(tmp_path / "out" / "a.png"))
    assert 0 < (mask > 0).mean() < 1, "both kinds of pixels, so that a wrong mask shows"
    return mask > 0


def test_label_gets_the_mask_of_the_images_own_size(reader, image, weights, ours):
    transforms = reader.get_parsed_content("preprocessing").transforms
    pred = predicted(reader, {"image": str(image)}, list(transforms), weights)
    assert pred.shape == (1, HEIGHT, WIDTH)
    assert pred.dtype == torch.uint8, "viewers write pictures of whole numbers only"
    assert set(pred.unique().tolist()) == {0, 1}
    assert np.array_equal(pred[0].numpy() > 0, ours)


def test_deploy_gets_it_from_pixels_that_it_has_read_itself(reader, image, weights, ours):
    transforms = reader.get_parsed_content("preprocessing").transforms
    kept = [transform for transform in transforms if "LoadImage" not in type(transform).__name__]
    assert len(kept) == len(transforms) - 1
    pixels = torch.from_numpy(np.asarray(Image.open(image)).astype(np.float32))
    pred = predicted(reader, {"image": MetaTensor(pixels)}, kept, weights)
    assert np.array_equal(pred[0].numpy() > 0, ours)


def test_postprocessing_is_made_of_named_transforms_and_says_the_threshold(reader):
    names = [type(transform).__name__ for transform in reader.get_parsed_content("postprocessing").transforms]
    assert names == ["InvertResized", "Activationsd", "CopyItemsd", "AsDiscreted", "CastToTyped"]
    assert reader.get("postprocessing#transforms#3#threshold") == "@threshold"
