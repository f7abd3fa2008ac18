"""The shipped bundle under MONAI Label's and MONAI Deploy's own readers, where those packages are installed.

Neither is in an extra: both bring servers and drivers that nothing here uses, and Deploy's package lies inside MONAI's.
docs/export.md says how an environment is made in which these run; elsewhere they are skipped, and
``test_other_readers.py`` does what the readers do, step by step.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from monai.data import set_track_meta
from numpy.typing import NDArray
from PIL import Image

from samfed_monai.cli.main import main
from samfed_monai.data import render_synthetic
from samfed_monai.networks import client_network  # before torchvision, whose operators it completes  # noqa: F401

from .conftest import REPOSITORY

BUNDLE = REPOSITORY / "bundles" / "samfed_skin"
pytestmark = pytest.mark.slow


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """One lesion, higher than wide, so that swapped axes show."""
    listed = render_synthetic(tmp_path, sites=1, images_per_site=0, public=1, validation=0, test=0, size=(120, 90))
    return tmp_path / listed.public[0].image


@pytest.fixture
def ours(image: Path, tmp_path: Path) -> NDArray[np.bool_]:
    """The mask of ``samfed infer``, (H, W)."""
    assert main(["infer", str(BUNDLE), str(image), "--output-dir", str(tmp_path / "out")]) == 0
    set_track_meta(True)
    mask = np.asarray(Image.open(tmp_path / "out" / f"{image.stem}.png")) > 0
    assert mask.shape == np.asarray(Image.open(image)).shape[:2]
    assert 0.01 < mask.mean() < 0.6, "a lesion and, around it, more skin: background is not taken for foreground"
    return mask


def test_label_writes_the_mask_of_infer_and_offers_the_lesion_alone(image, ours):
    reader = pytest.importorskip("monailabel.tasks.infer.bundle", reason="monailabel is not installed")
    itk = pytest.importorskip("itk")
    task = reader.BundleInferTask(str(BUNDLE), {})
    assert task.is_valid()
    assert task.labels == {"lesion": 1}, "background is no label of a viewer"
    assert type(task.pre_transforms({"device": "cpu"})[0]).__name__.startswith("LoadImage")
    request: dict[str, Any] = {"image": str(image), "device": "cpu", "result_extension": ".nrrd"}
    written, _ = task(request)
    mask = itk.array_from_image(itk.imread(written)).transpose()  # its writer turns all axes of (1, H, W) round
    assert mask.dtype == np.uint8
    assert set(np.unique(mask)) == {0, 1}, "a mask, no logits"
    assert mask.shape == (1, *ours.shape)
    assert np.array_equal(mask[0] > 0, ours)


def test_deploy_drops_the_reader_and_sends_the_mask_of_infer(image, ours):
    reader = pytest.importorskip(
        "monai.deploy.operators.monai_bundle_inference_operator", reason="monai-deploy-app-sdk is not installed"
    )
    core = pytest.importorskip("monai.deploy.core")
    sent: dict[str, Any] = {}
    pixels = core.Image(np.asarray(Image.open(image)))
    edges = SimpleNamespace(receive={"image": pixels}.get), SimpleNamespace(get={}.get, emit=_into(sent))

    fragment = core.Application()
    maps = [
        reader.IOMapping("image", core.Image, reader.IOType.IN_MEMORY),
        reader.IOMapping("pred", core.Image, reader.IOType.IN_MEMORY),
    ]
    operator = reader.MonaiBundleInferenceOperator(
        fragment,
        app_context=core.AppContext({}),
        input_mapping=maps[:1],
        output_mapping=maps[1:],
        bundle_path=BUNDLE,
        bundle_config_names=reader.BundleConfigNames(config_names=["inference"]),
    )
    operator.compute(*edges, None)
    kept = [type(each).__name__ for each in operator._preproc.transforms]
    assert not [name for name in kept if name.startswith("LoadImage")]
    assert kept[0] == "EnsureChannelFirstd"
    mask = sent["pred"].asnumpy()
    assert mask.dtype == np.uint8
    assert set(np.unique(mask)) == {0, 1}, "a mask, no logits"
    assert np.array_equal(mask > 0, ours)


def _into(sent: dict[str, Any]) -> Callable[[Any, str], None]:
    return lambda result, name: sent.update({name: result})
