"""What MONAI's model-zoo asks of a bundle, and its ``ci/verify_bundle.py`` checks, and that docs explain each option.

The step of TorchScript is in ``test_export.py``; that of large files has nothing to fetch.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from monai.bundle import create_workflow, verify_metadata, verify_net_in_out

from samfed_monai.config import check_bundle, options_of
from samfed_monai.config.check import workflows_of
from samfed_monai.config.parse import WORKFLOWS
from samfed_monai.core.io import read_json, write_json
from tests.data.making import picture, save

from .conftest import BUNDLES, REPOSITORY

OPTIONS = (REPOSITORY / "docs" / "options.md").read_text()


@pytest.fixture
def metadata(bundle: Path) -> dict:
    return read_json(bundle / "configs" / "metadata.json")


SCHEMA = REPOSITORY / "docs" / "metadata-schema.json"


def verify(metadata: dict, folder: Path) -> None:
    """MONAI's ``verify_metadata``, which fetches a schema only if there is none."""
    write_json(folder / "metadata.json", metadata)
    verify_metadata(meta_file=str(folder / "metadata.json"), filepath=str(SCHEMA))


def test_metadata_passes_monai_verification_offline(metadata, tmp_path, monkeypatch):
    for fetching in ("urllib.request.urlopen", "monai.apps.utils.urlretrieve"):
        monkeypatch.setattr(fetching, None)
    verify(metadata, tmp_path)
    assert metadata["network_data_format"]["outputs"]["pred"]["channel_def"]["0"] == "background"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"changelog": {}}, "should be non-empty"),
        ({"version": 1}, "is not of type 'string'"),
        ({"network_data_format": {"inputs": {}}}, "outputs' is a required property"),
        ({"eval_metrics": {"mean_dice": "0.87"}}, "is not of type 'number'"),
        ({"references": ["", 3]}, "should be non-empty|is not of type"),
    ],
)
def test_schema_rejects_invalid_metadata(change, message, metadata, tmp_path):
    with pytest.raises(Exception, match=message):
        verify({**metadata, **change}, tmp_path)


def test_metadata_metrics_match_readme(bundle, metadata):
    text = (bundle / "docs" / "README.md").read_text()
    weights = list((bundle / "models").glob("model.*"))
    assert bool(metadata["eval_metrics"]) == bool(weights), "a bundle without weights has no score to show"
    for value in metadata["eval_metrics"].values():
        assert f"{value}" in text.partition("## Performance")[2]


def test_readme_has_required_sections_and_statements(bundle):
    text = (bundle / "docs" / "README.md").read_text()
    for section in ("Performance", "System configuration", "Data", "Intended use and limits"):
        assert len(text.partition(f"\n## {section}\n")[2].partition("\n## ")[0].split()) > 20, section
    assert "a re-implementation of SAM-Fed; the agreement rule is our reading of it" in " ".join(text.split())
    assert "**Not a medical device**" in text
    assert "\n## Settings specific to " in text
    assert not [other for other in BUNDLES if other != bundle and other.name in text]


def test_bundle_has_license_files_and_no_large_files(bundle):
    assert "MobileSAM" in (bundle / "docs" / "data_license.txt").read_text()
    assert "large_files.yml" in (bundle / "docs" / "README.md").read_text()
    assert all(path.stat().st_size <= 12e6 for path in (bundle / "models").glob("model.*"))
    assert (bundle / "LICENSE").read_text() == (REPOSITORY / "LICENSE").read_text()


def test_metadata_versions_match_constraints(metadata):
    pins = (REPOSITORY / "constraints.txt").read_text()
    required = {"monai": metadata["monai_version"], "torch": metadata["pytorch_version"]}
    for name, version in (required | metadata["required_packages_version"]).items():
        pinned = re.findall(rf"^{name}==([\w.]+)", pins, re.MULTILINE)  # more than one where Python's version decides
        assert not pinned or version in pinned, name


@pytest.mark.parametrize("file", sorted({files[-1] for files in WORKFLOWS.values()}))
def test_docs_explain_every_option_with_default(bundle, file):
    section = OPTIONS.partition(f"### `configs/{file}`")[2].partition("\n### ")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", section, re.MULTILINE))
    content = read_json(bundle / "configs" / file)
    assert len(options_of(content)) <= 10
    for name, value in on_top(content).items():
        shown = {"": '""', None: "`null`", True: "true", False: "false"}.get(value, f"`{value}`")
        assert name in rows, f"docs/options.md says nothing of {name} of {file}"
        assert {shown, str(value)} & {*rows[name].split(", ")}, f"{file} -> {name}"


def on_top(content: dict) -> dict:
    """The options, and the plain values between ``imports`` and the first component."""
    first = next((index for index, value in enumerate(content.values()) if isinstance(value, dict)), len(content))
    above = {name: value for name, value in list(content.items())[:first] if not isinstance(value, list)}
    return options_of(content) | {n: v for n, v in above.items() if not str(v).startswith(("$", "@"))}


NECESSARY, PREFERRED = ("configs/metadata.json", "LICENSE"), ("models/model.pt", "configs/inference.json")


@pytest.fixture
def about(bundle: Path) -> dict[str, str]:
    """The arguments with which the script calls MONAI's functions."""
    configs = bundle / "configs"
    paths = {"meta_file": str(configs / "metadata.json"), "config_file": str(configs / "inference.json")}
    return {**paths, "bundle_root": str(bundle)}


def test_bundle_files_and_version_pass_check(bundle, metadata):
    assert [bundle.name for bundle in BUNDLES] == ["samfed_polyp", "samfed_skin"]
    assert [name for name in (*NECESSARY, *PREFERRED) if not (bundle / name).is_file()] == []
    assert not list(bundle.glob("large_files.*"))
    numbers = [tuple(map(int, version.split("."))) for version in metadata["changelog"]]
    assert tuple(map(int, metadata["version"].split("."))) == max(numbers)
    assert all(len(number) == 3 for number in numbers)
    for workflow in workflows_of(bundle):
        assert check_bundle(bundle, workflow, ready=False) == []


def test_inference_properties_and_network_match_metadata(bundle, about, tmp_path):
    """The script asks for those of named applications; these are all that MONAI itself knows."""
    save(tmp_path / "images" / "1.png", picture(1))
    paths = {"dataset_dir": str(tmp_path / "images"), "output_dir": str(tmp_path / "masks")}
    logging_file = str(bundle / "configs" / "logging.conf")
    workflow = create_workflow(workflow_type="inference", logging_file=logging_file, **about, **paths)
    assert workflow.check_properties() == []
    verify_net_in_out(net_id="network_def", **about)
