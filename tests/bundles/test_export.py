"""MONAI's own exports of the shipped network: TorchScript and ONNX."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ckpt_export, onnx_export
from numpy.typing import NDArray
from torch import Tensor, nn

from samfed_monai.data import render_synthetic
from samfed_monai.data.reading import read_image
from samfed_monai.networks import client_network

from .conftest import REPOSITORY

BUNDLE = REPOSITORY / "bundles" / "samfed_skin"
SAME = 1e-3  # logits of this network lie within some ten of 0: float32 sums in another order differ by about 1e-5


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Tensor:
    """(2, 3, 224, 224) float in [0, 1]."""
    folder = tmp_path_factory.mktemp("images")
    listed = render_synthetic(folder, sites=1, images_per_site=0, public=2, validation=0, test=0, size=(224, 224))
    pixels = np.stack([np.asarray(read_image(folder / item.image)) for item in listed.public])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """As the bundle ships it."""
    made = client_network("mobile_sam_fpn").eval()
    made.load_state_dict(torch.load(BUNDLE / "models" / "model.pt", weights_only=True))
    return made


@pytest.fixture(scope="module")
def logits(network: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return network(images)


def export_arguments(output: Path) -> dict[str, Any]:
    configs = BUNDLE / "configs"
    return {
        "net_id": "network_def",
        "filepath": str(output),
        "ckpt_file": str(BUNDLE / "models" / "model.pt"),
        "meta_file": str(configs / "metadata.json"),
        "config_file": str(configs / "inference.json"),
    }


@pytest.mark.slow
def test_ckpt_export_gives_same_masks_and_includes_metadata(network, images, logits, tmp_path):
    ckpt_export(**export_arguments(tmp_path / "model.ts"))
    more = {"metadata.json": "", "inference.json": ""}
    exported = torch.jit.load(tmp_path / "model.ts", _extra_files=more)
    other = torch.rand(3, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = exported(images)
        assert (exported(other) - network(other)).abs().max() <= SAME
    assert (found - logits).abs().max() <= SAME
    assert torch.equal(found > 0, logits > 0)
    assert (logits > 0).any()
    assert (logits < 0).any()
    assert json.loads(more["metadata.json"])["name"] == "SAM-Fed skin lesion segmentation"
    assert json.loads(more["inference.json"])["network_name"] == "mobile_sam_fpn"


@pytest.mark.slow
def test_onnx_export_gives_same_masks(images, logits, tmp_path):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    import onnxruntime

    onnx_export(**export_arguments(tmp_path / "model.onnx"))
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    (taken,) = session.get_inputs()
    found: list[NDArray[np.float32]] = [session.run(None, {taken.name: each[None].numpy()})[0] for each in images]
    assert np.abs(np.concatenate(found) - logits.numpy()).max() <= SAME
    assert np.array_equal(np.concatenate(found) > 0, logits.numpy() > 0)
