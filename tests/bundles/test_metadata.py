"""What MONAI's model-zoo asks of a bundle, and that its docs speak of every knob."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from samfed_monai.config import check_bundle, knobs_of
from samfed_monai.config.check import workflows_of
from samfed_monai.config.layers import WORKFLOWS
from samfed_monai.io import read_json

REPOSITORY = Path(__file__).resolve().parents[2]
BUNDLE = REPOSITORY / "bundles" / "samfed_skin"
METADATA = read_json(BUNDLE / "configs" / "metadata.json")


@pytest.mark.parametrize(
    "key",
    [
        *("schema", "version", "changelog", "monai_version", "pytorch_version", "numpy_version"),
        *("required_packages_version", "name", "task", "description", "authors", "copyright", "network_data_format"),
    ],
)
def test_metadata_has_what_the_model_zoo_asks_for(key):
    assert METADATA[key]


def test_version_has_its_entry_in_the_changelog():
    assert re.fullmatch(r"\d+\.\d+\.\d+", METADATA["version"])
    assert METADATA["version"] in METADATA["changelog"]


def test_versions_are_those_of_the_constraints():
    pins = (REPOSITORY / "constraints.txt").read_text()
    required = {"monai": METADATA["monai_version"], "torch": METADATA["pytorch_version"]}
    for name, version in (required | METADATA["required_packages_version"]).items():
        pinned = re.findall(rf"^{name}==([\w.]+)", pins, re.MULTILINE)  # more than one where Python's version decides
        assert not pinned or version in pinned, name


def test_licence_lies_at_the_root():
    assert (BUNDLE / "LICENSE").read_text() == (REPOSITORY / "LICENSE").read_text()


def test_network_takes_and_gives_what_the_metadata_says():
    from monai.bundle import verify_net_in_out

    configs = BUNDLE / "configs"
    verify_net_in_out(
        net_id="network_def",
        meta_file=str(configs / "metadata.json"),
        config_file=str(configs / "inference.json"),
        device="cpu",
        bundle_root=str(BUNDLE),
    )


def test_the_bundle_as_shipped_has_no_problems():
    for workflow in workflows_of(BUNDLE):
        assert check_bundle(BUNDLE, workflow, ready=False) == []
    for path in sorted((BUNDLE / "configs" / "variants").glob("*.json")):
        assert check_bundle(BUNDLE, "train", variant=path.stem, ready=False) == []


@pytest.mark.parametrize("file", sorted({files[-1] for files in WORKFLOWS.values()}))
def test_the_docs_explain_every_knob(file):
    path = BUNDLE / "configs" / file
    if not path.is_file():
        pytest.skip(f"{file} is not there")
    text = (BUNDLE / "docs" / "README.md").read_text()
    section = text.partition(f"`configs/{file}`")[2].partition("\n### ")[0]
    missing = [name for name in knobs_of(read_json(path)) if f"| `{name}` |" not in section]
    assert missing == []


def test_the_docs_carry_the_marks_of_a_re_implementation():
    text = (BUNDLE / "docs" / "README.md").read_text()
    assert "a re-implementation of SAM-Fed; the agreement rule is our reading of it" in text
