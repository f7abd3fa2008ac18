"""What model-zoo's ``ci/verify_bundle.py`` checks of a bundle, step by step, by MONAI's own functions.

The steps of metadata and TorchScript are in ``test_metadata.py`` and ``test_export.py``; that of large files has
nothing to fetch.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from monai.bundle import create_workflow, verify_net_in_out

from samfed_monai.core.io import read_json
from tests.data.making import picture, save

NECESSARY, PREFERRED = ("configs/metadata.json", "LICENSE"), ("models/model.pt", "configs/inference.json")


@pytest.fixture
def handed_in(bundle: Path, tmp_path: Path) -> Path:
    """A copy of the bundle, in which the checks may write."""
    return Path(shutil.copytree(bundle, tmp_path / "models" / bundle.name))


def files_of(bundle: Path) -> dict[str, str]:
    """The arguments with which the script calls MONAI's functions."""
    configs = bundle / "configs"
    about = {"meta_file": str(configs / "metadata.json"), "config_file": str(configs / "inference.json")}
    return {**about, "bundle_root": str(bundle)}


def test_necessary_and_preferred_files_are_there(handed_in):
    assert [name for name in (*NECESSARY, *PREFERRED) if not (handed_in / name).is_file()] == []
    assert not list(handed_in.glob("large_files.*"))


def test_the_version_is_the_newest_of_its_changelog(handed_in):
    metadata = read_json(handed_in / "configs" / "metadata.json")
    numbers = [tuple(map(int, version.split("."))) for version in metadata["changelog"]]
    assert tuple(map(int, metadata["version"].split("."))) == max(numbers)
    assert all(len(number) == 3 for number in numbers)


def test_properties_of_inference_are_all_there(handed_in, tmp_path):
    """The script asks for those of named applications; these are all that MONAI itself knows."""
    save(tmp_path / "images" / "1.png", picture(1))
    places = {"dataset_dir": str(tmp_path / "images"), "output_dir": str(tmp_path / "masks")}
    logging_file = str(handed_in / "configs" / "logging.conf")
    workflow = create_workflow(workflow_type="inference", logging_file=logging_file, **files_of(handed_in), **places)
    assert workflow.check_properties() == []


def test_the_network_takes_and_gives_what_the_metadata_says(handed_in):
    verify_net_in_out(net_id="network_def", **files_of(handed_in))
