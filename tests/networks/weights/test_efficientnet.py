from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import BatchNorm2d

from samfed_monai.core.errors import Refused
from samfed_monai.core.io import safe_load, sha256_file
from samfed_monai.networks import client_network
from samfed_monai.networks.weights import convert_efficientnet_lite0, find_checkpoint, lite0_encoder, weights_of


@pytest.fixture(scope="module")
def encoder():
    """Random weights whose statistics are not those of a fresh network, so that a mix-up shows."""
    torch.manual_seed(0)
    encoder = lite0_encoder().eval()
    for module in encoder.modules():
        if isinstance(module, BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return encoder


@pytest.fixture
def original(encoder, tmp_path) -> Path:
    """A file as its publisher makes them: names of its own, our order, a classifier at the end."""
    state = {f"_{number}": tensor for number, tensor in enumerate(encoder.state_dict().values())}
    state |= {"_fc.weight": torch.zeros(1000, 1280), "_fc.bias": torch.zeros(1000)}
    torch.save(state, tmp_path / "original.pth")
    return tmp_path / "original.pth"


def test_images_from_0_to_1_give_what_normalised_images_gave(encoder, original, tmp_path):
    convert_efficientnet_lite0(original, tmp_path / "lite0.safetensors")
    converted = lite0_encoder().eval()
    converted.load_state_dict(safe_load(tmp_path / "lite0.safetensors"))
    image = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        expected = encoder.bn1(encoder.conv_stem((image * 255 - 127) / 128))
        found = converted.bn1(converted.conv_stem(image))
    # the zeros around an image are mid-grey to the original and black to ours: the outermost row and column differ
    torch.testing.assert_close(found[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1], rtol=1e-4, atol=1e-4)
    own, theirs = converted.state_dict(), encoder.state_dict()
    assert [name for name in own if not torch.equal(own[name], theirs[name])] == [
        "conv_stem.weight",
        "bn1.running_mean",
    ]


def test_the_same_original_is_the_same_file(original, tmp_path):
    for name in "ab":
        convert_efficientnet_lite0(original, tmp_path / f"{name}.safetensors")
    assert sha256_file(tmp_path / "a.safetensors") == sha256_file(tmp_path / "b.safetensors")


def test_other_tensors_are_refused(original, tmp_path):
    state = torch.load(original, weights_only=True)
    torch.save(dict(list(state.items())[1:]), tmp_path / "short.pth")
    with pytest.raises(Refused, match=r"short\.pth: expected the 296 of EfficientNet-Lite0, found 295 tensors"):
        convert_efficientnet_lite0(tmp_path / "short.pth", tmp_path / "x.safetensors")
    swapped = list(state.values())
    swapped[0], swapped[-2] = swapped[-2], swapped[0]
    torch.save(dict(zip(state, swapped, strict=True)), tmp_path / "swapped.pth")
    with pytest.raises(Refused, match=r"swapped\.pth -> conv_stem\.weight: expected shape \(32, 3, 3, 3\)"):
        convert_efficientnet_lite0(tmp_path / "swapped.pth", tmp_path / "x.safetensors")
    assert not (tmp_path / "x.safetensors").exists()


def test_the_real_weights_know_what_real_images_look_like():
    """Each layer's means on a photograph go with those that the weights remember of ImageNet, channel by channel."""
    matplotlib = pytest.importorskip("matplotlib")
    try:
        path = find_checkpoint("efficientnet_lite0")
    except Refused:
        pytest.skip("efficientnet_lite0 is not in the weights folder")
    assert sha256_file(path) == weights_of("efficientnet_lite0").sha256
    photograph = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    image = np.asarray(Image.open(photograph).convert("RGB").resize((224, 224)))
    network = client_network("deeplabv3plus_efficientnet_lite0", weights="efficientnet_lite0").eval()
    agreement: list[float] = []

    def compare(module: BatchNorm2d, inputs: tuple[torch.Tensor]) -> None:
        pair = torch.stack([inputs[0].mean((0, 2, 3)), module.running_mean])
        agreement.append(float(torch.corrcoef(pair)[0, 1]))

    for module in network.encoder.modules():  # type: ignore[union-attr]
        if isinstance(module, BatchNorm2d):
            module.register_forward_pre_hook(compare)
    with torch.no_grad():
        network.encoder(torch.tensor(image).permute(2, 0, 1)[None] / 255)  # type: ignore[operator]
    # a shuffled order gives correlations around 0, none above 0.2
    assert np.median(agreement) > 0.7
