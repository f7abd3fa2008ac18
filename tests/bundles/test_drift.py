"""The two bundles are one recipe; every difference and repeated option is listed here, with its reason."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from samfed_monai.config.check import FOLDER_OPTIONS
from samfed_monai.config.options import is_value
from samfed_monai.config.parse import join_id, walk
from samfed_monai.core.io import read_json
from samfed_monai.federation.workflow import PATHS

from .conftest import REPOSITORY

POLYP, SKIN = (REPOSITORY / "bundles" / name for name in ("samfed_polyp", "samfed_skin"))

ALLOWED = {
    "configs/train.json": {
        "weak_view#rotate": "an endoscope has no upright",
        "weak_view#zoom": "sizes of polyps differ more between collections",
        "strong_view#brightness": "light differs between endoscopes",
        "strong_view#contrast": "light differs between endoscopes",
        "strong_view#saturation": "white balance differs between endoscopes",
        "strong_view#hue": "hue distinguishes polyp and mucosa",
    },
    "configs/teacher.json": {
        "weak_view#zoom": "the public set hardly shows the sizes of the hospitals' polyps",
        **dict.fromkeys(
            (f"strong_view#{name}" for name in ("brightness", "contrast", "saturation", "gamma")),
            "light and white balance differ between endoscopes",
        ),
        "epochs": "few videos are soon overfitted",
        "views": "test-time views make the teacher better on polyps",
    },
    "configs/federate.json": {
        "warm_start_steps": "few videos are soon overfitted",
        "local_steps": "two hospitals train on fewer images a round than four, and twice the steps still help",
        "output_dir": "a folder named after the bundle",
    },
    "configs/metadata.json": {
        **dict.fromkeys(("name", "task", "description", "references"), "what the bundle is made for"),
        "eval_metrics": "scores of its own network",
        **dict.fromkeys(("data_source", "data_type", "label_classes", "pred_classes"), "its images"),
        "network_data_format#inputs#image#modality": "its images",
        "network_data_format#outputs#pred#channel_def#1": "its images",
    },
}
"""By file, the ids with values that differ on purpose, each with everything below it, and why."""

OWN_TEXT, OWN_TERMS = "docs/README.md", "docs/data_license.txt"
"""The texts of each bundle; the table in the first one explains every difference between the recipes."""
OWN = {OWN_TEXT, OWN_TERMS, "models/model.pt", "models/model.quality.json"}
"""The files that are each bundle's own."""


def leaves(content: Any) -> dict[str, Any]:
    """Plain values by id; a list of them counts as one."""
    found = {}
    for parts, value in walk(content):
        parts_of_list = value if isinstance(value, list) else [value]
        if not any(isinstance(each, (dict, list)) for each in parts_of_list):
            found[join_id(parts)] = value
    return found


@pytest.mark.parametrize("name", ALLOWED)
def test_bundle_configs_differ_only_in_allowed_ids(name):
    contents, allowed = [read_json(each / name) for each in (POLYP, SKIN)], ALLOWED[name]
    here, there = map(leaves, contents)
    differing = {key for key in here.keys() | there.keys() if here.get(key, ...) != there.get(key, ...)}
    places = {next((each for each in allowed if f"{key}#".startswith(f"{each}#")), key) for key in differing}
    assert places == allowed.keys()
    assert list(contents[0]) == list(contents[1]), "the same order"


def test_other_bundle_files_are_identical():
    names = [{path.relative_to(each) for path in each.rglob("*") if path.is_file()} for each in (POLYP, SKIN)]
    assert names[0] == names[1]
    for name in names[0] - {*map(Path, ALLOWED), *map(Path, OWN)}:
        assert (POLYP / name).read_bytes() == (SKIN / name).read_bytes(), name


def test_bundle_specific_settings_are_listed_in_readme():
    """Only of the recipe: paths and metadata of the images need no explanation."""
    recipe = {
        f"`{name.partition('/')[2]}`: `{key}`"
        for name, ids in ALLOWED.items()
        for key in ids
        if name != "configs/metadata.json" and key != "output_dir"
    }
    for bundle in (POLYP, SKIN):
        text = (bundle / OWN_TEXT).read_text(encoding="utf-8")
        rows = [line for line in text.splitlines() if line.startswith("| `")]
        cells = [row.split(" | ")[0].removeprefix("| ").partition(": ") for row in rows]
        assert {f"{file}: {key}" for file, _, ids in cells for key in ids.split(", ")} == recipe, bundle.name


ANYWHERE = PATHS | set(FOLDER_OPTIONS) | {"adapter", "model", "seed", "imports"}
"""Paths, and what every workflow needs of its own."""

ALIKE = dict.fromkeys(("image_size", "network_name", "classes"), ("train", "inference"))
"""Options that a workflow needs to run alone, with the same value in both files."""

UNLIKE = {
    "batch_size": ("train", "teacher", "inference"),  # of the sites, of the teacher's fit, of what needs no gradient
    "learning_rate": ("train", "teacher"),  # of the sites, of the teacher's fit
    "epochs": ("train", "teacher"),
    "amp": ("train", "inference"),  # steps are as fast as they can be, masks the same on every machine
    "views": ("teacher", "inference"),  # of SAM's soft masks, of the trained network
    "encoder_weights": ("train", "evaluate"),  # evaluate.json is on train.json: a model's own weights fill the network
    "local_steps": ("train", "federate"),  # federate.json is on train.json
}
"""Options of one name with another meaning in each file, and the two that override another file."""


def homes(bundle: Path) -> dict[str, dict[str, object]]:
    """Options by name: the files that have them, those of the groups of ``federate.json`` included, with values."""
    found: dict[str, dict[str, object]] = defaultdict(dict)
    for path in sorted((bundle / "configs").glob("*.json")):
        content = read_json(path)
        content |= (content.get("teacher") or {}) if path.stem == "federate" else {}
        for name, value in content.items() if path.stem != "metadata" else ():
            if is_value(value) and not name.startswith("_"):
                found[name][path.stem] = value
    return found


def test_options_are_repeated_across_files_only_where_allowed(bundle):
    found = homes(bundle)
    twice = {name: set(files) for name, files in found.items() if len(files) > 1 and name not in ANYWHERE}
    assert twice == {name: set(files) for name, files in {**ALIKE, **UNLIKE}.items()}
    for name, (one, other) in ALIKE.items():
        assert found[name][one] == found[name][other], name


def test_federate_config_overrides_only_changed_values(bundle):
    federate, train, teacher = (read_json(bundle / "configs" / f"{x}.json") for x in ("federate", "train", "teacher"))
    assert all(value != train[name] for name, value in federate.items() if name in train)
    assert all(value != teacher[name] for name, value in federate["teacher"].items())
