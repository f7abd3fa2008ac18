"""The two bundles are one recipe: where they differ is listed here, each place with its reason, and nowhere else."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from samfed_monai.config.parse import join_id, walk
from samfed_monai.core.io import read_json

from .conftest import REPOSITORY

POLYP, SKIN = (REPOSITORY / "bundles" / name for name in ("samfed_polyp", "samfed_skin"))

ALLOWED = {
    "configs/train.json": {
        "weak_view#rotate": "an endoscope has no upright",
        "weak_view#zoom": "sizes of polyps differ more between collections",
        "strong_view#brightness": "light differs between endoscopes",
        "strong_view#contrast": "light differs between endoscopes",
        "strong_view#saturation": "white balance differs between endoscopes",
        "strong_view#hue": "hue tells polyp from mucosa",
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
        "local_steps": "two hospitals look at fewer images a round than four, and twice the steps still help",
        "output_dir": "a place, named after the bundle",
    },
    "configs/metadata.json": {
        **dict.fromkeys(("name", "task", "description", "references"), "what the bundle is made for"),
        "eval_metrics": "scores of its own network",
        **dict.fromkeys(("data_source", "data_type", "label_classes", "pred_classes"), "its images"),
        "network_data_format#inputs#image#modality": "its images",
        "network_data_format#outputs#pred#channel_def#1": "its images",
    },
}
"""By file, the ids whose values differ on purpose, each with everything below it, and why."""

OWN_TEXT, OWN_TERMS = "docs/README.md", "docs/data_license.txt"
"""The texts that are each bundle's own; the first one's table says of every recipe's difference what is particular."""
OWN = {OWN_TEXT, OWN_TERMS, "models/model.pt", "models/model.quality.json"}
"""The files that are each bundle's own."""

_ABSENT = "nothing"


def drift(one: Path, other: Path) -> list[str]:
    """Every difference that is not allowed, as ``file -> id: …``, and every allowed one that is none any more."""
    return [*_of_files(one, other), *_of_ids(one, other)]


def _of_files(one: Path, other: Path) -> Iterator[str]:
    files = [{path.relative_to(each).as_posix() for path in each.rglob("*") if path.is_file()} for each in (one, other)]
    for name in sorted(files[0] ^ files[1]):
        yield f"{name}: in {(one if name in files[0] else other).name} alone"
    for name in sorted((files[0] & files[1]) - {*ALLOWED, *OWN}):
        if (one / name).read_bytes() != (other / name).read_bytes():
            yield f"{name}: not the same in both"


def _of_ids(one: Path, other: Path) -> Iterator[str]:
    for name, allowed in ALLOWED.items():
        here, there = (_leaves(read_json(each / name)) for each in (one, other))
        used = set()
        for key in sorted(here.keys() | there.keys()):
            if here.get(key, _ABSENT) == there.get(key, _ABSENT):
                continue
            above = {each for each in allowed if key == each or key.startswith(f"{each}#")}
            used |= above
            if not above:
                sides = f"{one.name} has {here.get(key, _ABSENT)!r}, {other.name} {there.get(key, _ABSENT)!r}"
                yield f"{name} -> {key}: {sides}"
        yield from (f"{name} -> {key}: allowed to differ, but does not" for key in sorted(allowed.keys() - used))
        orders = [list(read_json(each / name)) for each in (one, other)]
        if orders[0] != orders[1]:
            yield f"{name}: ids in another order"


def _leaves(content: Any) -> dict[str, Any]:
    """Plain values by id; a list of them counts as one."""
    plain = (dict, list)
    return {
        join_id(parts): value
        for parts, value in walk(content)
        if not isinstance(value, dict) and not (isinstance(value, list) and any(isinstance(x, plain) for x in value))
    }


def test_the_bundles_differ_only_where_they_should():
    assert drift(POLYP, SKIN) == []


def test_what_is_particular_to_a_bundle_stands_in_its_readme():
    """Of the recipe: a place, and what metadata say of the images, explain themselves."""
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


@pytest.mark.parametrize(
    ("name", "before", "after", "told"),
    [
        (
            "configs/train.json",
            '"learning_rate": 0.001',
            '"learning_rate": 0.002',
            "configs/train.json -> learning_rate: mine has 0.002, samfed_skin 0.001",
        ),
        (
            "configs/teacher.json",
            '"epochs": 5',
            '"epochs": null',
            "configs/teacher.json -> epochs: allowed to differ, but does not",
        ),
        ("configs/evaluate.json", '"split": "test"', '"split": "validation"', "configs/evaluate.json: not the same"),
        (
            "configs/train.json",
            '"flip": true, "quarter_turns": true',
            '"flip": true, "quarter_turns": false',
            "configs/train.json -> weak_view#quarter_turns: mine has False, samfed_skin True",
        ),
    ],
)
def test_any_other_drift_is_told_with_its_place(tmp_path, name, before, after, told):
    mine = tmp_path / "mine"
    shutil.copytree(POLYP, mine)
    text = (mine / name).read_text(encoding="utf-8")
    assert text.count(before) == 1
    (mine / name).write_text(text.replace(before, after), encoding="utf-8")
    (found,) = drift(mine, SKIN)
    assert found.startswith(told)


def test_a_file_of_one_bundle_alone_is_drift(tmp_path):
    mine = tmp_path / "mine"
    shutil.copytree(POLYP, mine)
    (mine / "configs" / "extra.json").write_text("{}")
    assert drift(mine, SKIN) == ["configs/extra.json: in mine alone"]
