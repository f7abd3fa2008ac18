"""One thread for small tensors, and the skin bundle's trainer with any variant."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import monai
import pytest
from monai.bundle import ConfigWorkflow

from samfed_monai.config import find_bundle, variant_files
from samfed_monai.data import render_synthetic
from tests.networks.conftest import one_thread  # noqa: F401  a fixture, of this room, too


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., ConfigWorkflow]]:
    """The skin bundle's trainer with a variant, on two small synthetic sites."""
    folder = tmp_path_factory.mktemp("sites")
    counts = {"images_per_site": 6, "public": 4, "validation": 2, "test": 2, "size": (64, 64)}
    listed = render_synthetic(folder / "images", sites=2, **counts)  # type: ignore[arg-type]
    listed.save(folder / "list.json")
    bundle = find_bundle("samfed_skin")

    def make(variant: str, **override: Any) -> ConfigWorkflow:
        knobs = {
            "bundle_root": str(bundle),
            "datalist": str(folder / "list.json"),
            "data_root": str(folder / "images"),
            "site": sorted(listed.sites)[0],
            "image_size": 32,
            "batch_size": 2,
            "epochs": 1,
            "local_steps": 2,
            "network_name": "basic_unet",
            "standalone": {},
        }
        workflow = ConfigWorkflow(
            config_file=[str(bundle / "configs" / "train.json"), *map(str, variant_files(bundle, variant))],
            meta_file=str(bundle / "configs" / "metadata.json"),
            workflow_type="train",
            logging_file=False,
            **(knobs | override),
        )
        workflow.initialize()
        return workflow

    before = monai.data.get_track_meta()
    yield make
    monai.data.set_track_meta(before)
