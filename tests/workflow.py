"""A bundle's trainer on rendered sites, at a small size."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from monai.bundle import ConfigWorkflow

from samfed_monai.data import DataList

SMALL = {"image_size": 32, "batch_size": 2, "epochs": 1, "local_steps": 2, "network_name": "basic_unet"}


def workflow(bundle: Path, sites: Path, files: Iterable[str | Path] = (), **override: Any) -> ConfigWorkflow:
    """Returns the workflow of ``train.json`` and further files for the first site.

    ``sites`` has ``list.json`` and the images; ``override`` replaces ids of the files and of :data:`SMALL`.
    """
    configs = bundle / "configs"
    paths = {"bundle_root": str(bundle), "datalist": str(sites / "list.json"), "data_root": str(sites)}
    made = ConfigWorkflow(
        config_file=[str(configs / name) for name in ("train.json", *files)],
        meta_file=str(configs / "metadata.json"),
        workflow_type="train",
        logging_file=False,
        **{**paths, "site": min(DataList.load(sites / "list.json").sites), **SMALL, **override},
    )
    made.initialize()
    return made
