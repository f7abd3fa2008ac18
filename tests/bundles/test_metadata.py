"""What MONAI's model-zoo asks of a bundle, and that its docs speak of every knob."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from samfed_monai.config import check_bundle, options_of
from samfed_monai.config.check import workflows_of
from samfed_monai.config.parse import WORKFLOWS
from samfed_monai.core.io import read_json, write_json

from .conftest import BUNDLES, REPOSITORY

KNOBS = (REPOSITORY / "docs" / "options.md").read_text()


@pytest.fixture
def metadata(bundle: Path) -> dict:
    return read_json(bundle / "configs" / "metadata.json")


def test_there_is_one_bundle_for_skin_and_one_for_polyps():
    assert [bundle.name for bundle in BUNDLES] == ["samfed_polyp", "samfed_skin"]


@pytest.mark.parametrize(
    "key",
    [
        *("schema", "version", "changelog", "monai_version", "pytorch_version", "numpy_version"),
        *("required_packages_version", "name", "task", "description", "authors", "copyright", "network_data_format"),
    ],
)
def test_metadata_has_what_the_model_zoo_asks_for(key, metadata):
    assert metadata[key]


SCHEMA = REPOSITORY / "docs" / "metadata-schema.json"


def verify(metadata: dict, folder: Path) -> None:
    """MONAI's ``verify_metadata``, which fetches a schema only where none lies."""
    from monai.bundle import verify_metadata

    write_json(folder / "metadata.json", metadata)
    verify_metadata(meta_file=str(folder / "metadata.json"), filepath=str(SCHEMA))


def test_monai_s_verify_metadata_takes_it_without_a_network(metadata, tmp_path, monkeypatch):
    def refused(*_: object, **__: object) -> None:
        raise AssertionError("nothing is fetched")

    monkeypatch.setattr("urllib.request.urlopen", refused)
    monkeypatch.setattr("monai.apps.utils.urlretrieve", refused)
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
def test_the_schema_refuses_what_is_amiss(change, message, metadata, tmp_path):
    with pytest.raises(Exception, match=message):
        verify({**metadata, **change}, tmp_path)


def test_metrics_of_metadata_are_those_of_the_card(bundle, metadata):
    text = (bundle / "docs" / "README.md").read_text()
    weights = list((bundle / "models").glob("model.*"))
    assert bool(metadata["eval_metrics"]) == bool(weights), "a bundle without weights has no score to tell"
    for value in metadata["eval_metrics"].values():
        assert f"{value}" in text.partition("## Performance")[2]


@pytest.mark.parametrize("section", ["Performance", "System configuration", "Data", "Intended use and limits"])
def test_the_readme_has_the_sections_that_the_model_zoo_asks_for(section, bundle):
    text = (bundle / "docs" / "README.md").read_text()
    assert len(text.partition(f"\n## {section}\n")[2].partition("\n## ")[0].split()) > 20


def test_terms_of_data_lie_beside_it_and_no_large_files_are_needed(bundle):
    terms = (bundle / "docs" / "data_license.txt").read_text()
    assert "MobileSAM" in terms
    assert "large_files.yml" in (bundle / "docs" / "README.md").read_text()
    assert not (bundle / "large_files.yml").exists()
    weights = [path.stat().st_size for path in (bundle / "models").glob("model.*")]
    assert all(size <= 12e6 for size in weights)


def test_versions_are_those_of_the_constraints(metadata):
    pins = (REPOSITORY / "constraints.txt").read_text()
    required = {"monai": metadata["monai_version"], "torch": metadata["pytorch_version"]}
    for name, version in (required | metadata["required_packages_version"]).items():
        pinned = re.findall(rf"^{name}==([\w.]+)", pins, re.MULTILINE)  # more than one where Python's version decides
        assert not pinned or version in pinned, name


def test_licence_lies_at_the_root(bundle):
    assert (bundle / "LICENSE").read_text() == (REPOSITORY / "LICENSE").read_text()


def test_the_bundle_as_shipped_has_no_problems(bundle):
    for workflow in workflows_of(bundle):
        assert check_bundle(bundle, workflow, ready=False) == []


@pytest.mark.parametrize("file", sorted({files[-1] for files in WORKFLOWS.values()}))
def test_the_docs_explain_every_knob_and_give_its_default(bundle, file):
    section = KNOBS.partition(f"### `configs/{file}`")[2].partition("\n### ")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", section, re.MULTILINE))
    for name, value in on_top(read_json(bundle / "configs" / file)).items():
        shown = {"": '""', None: "`null`", True: "true", False: "false"}.get(value, f"`{value}`")
        assert name in rows, f"docs/options.md says nothing of {name} of {file}"
        assert shown in rows[name].split(", ") or str(value) in rows[name].split(", "), f"{file} -> {name}"


def on_top(content: dict) -> dict:
    """The knobs, and the plain values between ``imports`` and the first component."""
    first = next((index for index, value in enumerate(content.values()) if isinstance(value, dict)), len(content))
    above = {name: value for name, value in list(content.items())[:first] if not isinstance(value, list)}
    return options_of(content) | {n: v for n, v in above.items() if not str(v).startswith(("$", "@"))}


def test_a_clinician_sees_at_most_ten_knobs(bundle):
    for file in {files[-1] for files in WORKFLOWS.values()}:
        assert len(options_of(read_json(bundle / "configs" / file))) <= 10


def test_the_readme_carries_the_marks_of_a_re_implementation_and_names_what_is_particular(bundle):
    text = (bundle / "docs" / "README.md").read_text()
    assert "a re-implementation of SAM-Fed; the agreement rule is our reading of it" in " ".join(text.split())
    assert "**Not a medical device**" in text
    assert "\n## Settings specific to " in text
    for other in BUNDLES:
        assert other == bundle or f"samfed_{other.name.removeprefix('samfed_')}" not in text
