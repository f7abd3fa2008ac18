"""Every knob of a bundle has one home; the few that cannot are named here, with those that must agree."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest

from samfed_monai.config.check import FOLDER_OPTIONS
from samfed_monai.config.options import is_value
from samfed_monai.core.io import read_json
from samfed_monai.federation.workflow import PLACES

ANYWHERE = PLACES | set(FOLDER_OPTIONS) | {"adapter", "model", "seed", "imports"}
"""Places, and what every workflow needs of its own."""

ALIKE = dict.fromkeys(("image_size", "network_name", "classes"), ("train", "inference"))
"""Knobs that a workflow needs to run alone, and that must say the same in both files."""

UNLIKE = {
    "batch_size": ("train", "teacher", "inference"),  # of the sites, of the teacher's fit, of what needs no gradient
    "learning_rate": ("train", "teacher"),  # of the sites, of the teacher's fit
    "epochs": ("train", "teacher"),
    "amp": ("train", "inference"),  # steps are as fast as they can be, masks the same on every machine
    "views": ("teacher", "inference"),  # of SAM's soft masks, of the trained network
    "encoder_weights": (
        "train",
        "evaluate",
    ),  # evaluate.json lies on train.json: a model's own weights fill the network
    "local_steps": ("train", "federate"),  # federate.json is on train.json
}
"""Knobs of one name in several files that mean another thing in each, and the two that lie on top of another file."""


def homes(bundle: Path) -> dict[str, dict[str, object]]:
    """Knobs by name: the files that have them, those of the groups of ``federate.json`` included, with their values."""
    found: dict[str, dict[str, object]] = defaultdict(dict)
    for path in sorted((bundle / "configs").glob("*.json")):
        content = read_json(path)
        if path.stem == "metadata":
            continue
        content |= (content.get("teacher") or {}) if path.stem == "federate" else {}
        for name, value in content.items():
            if is_value(value) and not name.startswith("_"):
                found[name][path.stem] = value
    return found


def test_no_knob_stands_in_two_files_but_those_that_must(bundle):
    twice = {name: set(files) for name, files in homes(bundle).items() if len(files) > 1 and name not in ANYWHERE}
    assert twice == {name: set(files) for name, files in {**ALIKE, **UNLIKE}.items()}


@pytest.mark.parametrize("name", ALIKE)
def test_knobs_that_training_and_inference_share_agree(bundle, name):
    values = [homes(bundle)[name][file] for file in ALIKE[name]]
    assert values[0] == values[1], f"{name} of {' and '.join(ALIKE[name])} in {bundle.name}"


def test_a_federation_holds_of_other_files_only_what_differs(bundle):
    federate, train, teacher = (
        read_json(bundle / "configs" / f"{name}.json") for name in ("federate", "train", "teacher")
    )
    assert all(value != train[name] for name, value in federate.items() if name in train)
    assert all(value != teacher[name] for name, value in federate["teacher"].items())
