"""A misspelt key is named with its right spelling, whichever key of whichever file of a bundle it is."""

from __future__ import annotations

import copy
import json
import shutil
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

from samfed_monai.config import check_bundle, find_bundle
from samfed_monai.config.options import is_value
from samfed_monai.config.parse import WORKFLOWS, is_note, walk
from samfed_monai.core.io import read_json
from tests.config.conftest import TRAIN, Write

FILES = {files[-1]: workflow for workflow, files in WORKFLOWS.items()}


@pytest.fixture
def mine(tmp_path) -> Path:
    """A copy of a packaged bundle, without its weights; the other has the same keys."""
    root = tmp_path / "mine"
    shutil.copytree(find_bundle("samfed_skin"), root, ignore=shutil.ignore_patterns("*.pt"))
    return root


def without_a_letter(name: str) -> str:
    return name[: len(name) // 2] + name[len(name) // 2 + 1 :]


def with_two_letters_swapped(name: str) -> str:
    at = max(index for index in range(1, len(name) // 2 + 1) if name[index] != name[index - 1])
    return name[: at - 1] + name[at] + name[at - 1] + name[at + 1 :]


SLIPS = (without_a_letter, with_two_letters_swapped)


def renamed(content: Any, parts: tuple[str, ...], name: str) -> Any:
    """``content`` in which the key at ``parts`` is called ``name``, in the same place."""
    if isinstance(content, list):
        return [renamed(each, parts[1:], name) if str(at) == parts[0] else each for at, each in enumerate(content)]
    if len(parts) == 1:
        return {name if key == parts[0] else key: value for key, value in content.items()}
    return {key: renamed(value, parts[1:], name) if key == parts[0] else value for key, value in content.items()}


FREE = ("guides", "terms", "before", "after")
"""Groups of ``train.json`` in which every key is a name of one's own."""
REFUSED_WHERE_BUILT = ("privacy", "update_guard", "settings")
"""Objects whose keys are arguments of what is built of them."""


def batches(found: list[tuple[str, ...]]) -> list[list[tuple[str, ...]]]:
    """Ids to misspell in one check: each option alone; of those below, none inside or beside another."""
    together: dict[tuple[int, int], list[tuple[str, ...]]] = defaultdict(list)
    beside: Counter[tuple[str, ...]] = Counter()
    for parts in found:
        beside[parts[:-1]] += 1
        together[len(parts), beside[parts[:-1]]].append(parts)
    return list(together.values())


@pytest.mark.parametrize("file", FILES)
def test_misspelt_keys_in_files_are_refused_with_suggestion(mine, file):
    path = mine / "configs" / file
    content = read_json(path)
    chosen = [
        parts
        for name in content
        for parts, _ in walk(content[name], (name,))
        if not (is_note(name) or parts[-1].isdigit() or (name in FREE and len(parts) == 2))
        and len(parts[-1]) > 3
        and {*parts[:-1]}.isdisjoint(REFUSED_WHERE_BUILT)
    ]
    for turn, batch in enumerate(batches(chosen)):
        wrong = {parts: SLIPS[turn % 2 if len(parts) == 1 else 0](parts[-1]) for parts in batch}
        changed = content
        for parts, name in wrong.items():
            changed = renamed(changed, parts, name)
        path.write_text(json.dumps(changed))
        found = [str(problem) for problem in check_bundle(mine, FILES[file], ready=False)]
        for parts, name in wrong.items():
            assert any(name in problem and parts[-1] in problem for problem in found), (parts, found)
        assert len(found) == 1 or len(batch[0]) > 1, found
    assert len(chosen) > 20


@pytest.mark.parametrize("workflow", WORKFLOWS)
def test_misspelt_options_in_overrides_get_suggestion(workflow):
    skin = find_bundle("samfed_skin")
    files = {file: read_json(skin / "configs" / file) for file in FILES}
    groups = {"": [files[name] for name in WORKFLOWS[workflow]]}
    if workflow == "federate":
        groups |= {"teacher#": [files["teacher.json"]], "sites#a-b#": [files["train.json"]]}
    for group, contents in groups.items():
        names = {name for each in contents for name, value in each.items() if is_value(value) and name != "imports"}
        given = {f"{group}{SLIPS[index % 2](name)}": name for index, name in enumerate(sorted(names - {"_below"}))}
        problems = check_bundle(skin, workflow, overrides=dict.fromkeys(given, 1), ready=False)
        assert sorted(problem.where for problem in problems) == sorted(f"command line -> {each}" for each in given)
        for problem in problems:
            name = given[problem.where.removeprefix("command line -> ")]
            assert problem.hint in (f"did you mean {right!r}?" for right in (name, f"{group}{name}"))


def test_id_in_unknown_group_gets_suggestion():
    (problem,) = check_bundle(find_bundle("samfed_skin"), "federate", overrides={"client#local_steps": 2}, ready=False)
    assert str(problem).endswith("found an unknown id; did you mean 'local_steps'?")


@pytest.mark.parametrize("home", FILES)
def test_fault_72_option_in_wrong_file_is_refused_with_right_file(mine, home):
    for file in FILES.keys() - {home}:
        if file in ("evaluate.json", "federate.json") and home == "train.json":
            continue  # one is on the other and may set those of its options that it reads
        path, others = mine / "configs" / file, read_json(mine / "configs" / home)
        content = read_json(path)
        own = {name for each in WORKFLOWS[FILES[file]] for name in read_json(mine / "configs" / each)}
        given = {name: each for name, each in others.items() if name not in own and is_value(each) and name[0] != "_"}
        path.write_text(json.dumps(given | content))
        problems = check_bundle(mine, FILES[file], ready=False)
        problems = [each for each in problems if each.where != "weights of mobile_sam"]  # of a machine without them
        assert sorted(problem.where for problem in problems) == sorted(f"{file} -> {name}" for name in given)
        assert {problem.found for problem in problems} <= {"a key that nothing reads"}
        assert all(home in problem.hint for problem in problems)
        path.write_text(json.dumps(content))


def test_option_unread_by_evaluation_is_refused(mine):
    path = mine / "configs" / "evaluate.json"
    path.write_text(json.dumps({"image_size": 192, "learning_rate": 0.1, **read_json(path)}))
    assert [str(problem) for problem in check_bundle(mine, "evaluate", ready=False)] == [
        "evaluate.json -> learning_rate: expected a known key, found a key that nothing reads; "
        "delete it: only train.json sets it"
    ]


def test_custom_network_ignoring_option_is_accepted_by_evaluation(mine):
    path = mine / "configs" / "train.json"
    content = read_json(path)
    assert "encoder_weights" in read_json(mine / "configs" / "evaluate.json")
    content["network_def"] = {"_target_": "monai.networks.nets.BasicUNet", "spatial_dims": 2, "in_channels": 3}
    path.write_text(json.dumps(content))
    assert check_bundle(mine, "evaluate", ready=False) == []


def test_custom_names_are_accepted(mine):
    """A second term or guide, one of another name whose first is gone, and an option renamed with its references."""
    path = mine / "configs" / "train.json"
    content = read_json(path)
    content["guides"]["ema2"] = content["guides"].pop("ema")
    content["terms"]["sam_kd_soft"] = copy.deepcopy(content["terms"]["sam_kd"])
    content["terms"]["own_kd"] = content["terms"].pop("global_kd")
    path.write_text(json.dumps(content).replace('label_resize"', 'label_resized"'))
    assert check_bundle(mine, "train", ready=False) == []


def test_misspelt_reference_is_reported_instead_of_option(bundle, rewrite: Write):
    rewrite("train.json", json.dumps({"learning_rate": 0.1, **TRAIN}).replace("@rate", "@learning_rat"))
    (problem,) = check_bundle(bundle, "train")
    assert problem.where == "train.json -> train#trainer#rate"
    assert problem.hint == "did you mean 'learning_rate'?"


def test_other_problems_are_reported_with_misspelt_key(mine):
    path = mine / "configs" / "train.json"
    path.write_text(json.dumps(renamed(read_json(path) | {"batch_size": "4"}, ("learning_rate",), "learning_rat")))
    assert [str(problem) for problem in check_bundle(mine, "train", variant="no_sam", ready=False)] == [
        "train.json -> learning_rat: expected a known key, found a key that nothing reads; "
        "did you mean 'learning_rate'?",
        "train.json -> batch_size: expected a whole number, found '4' (str); remove the quotes",
    ]


def test_component_is_accepted_in_place_of_name():
    place, bundle = "terms#pseudo_label#loss", find_bundle("samfed_skin")
    assert not check_bundle(bundle, "train", overrides={place: {"_target_": "monai.losses.DiceLoss"}}, ready=False)
    (problem,) = check_bundle(bundle, "train", overrides={place: 5}, ready=False)
    assert problem.where == f"command line -> {place}"
