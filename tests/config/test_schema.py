"""Schemas for editors, the ranges of knobs and the tables of the docs come of one source, which the code upholds."""

from __future__ import annotations

import json
import shutil
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import jsonschema
import pytest

from samfed_monai.cli.main import main
from samfed_monai.config import check_bundle, find_bundle, packaged_bundles
from samfed_monai.config.editor import file_name, schemas, write
from samfed_monai.config.options import options_in
from samfed_monai.config.parse import WORKFLOWS
from samfed_monai.config.schema import argument_texts, component_schema, typed_as
from samfed_monai.config.strict import strict_bundle_problems
from samfed_monai.core.io import read_json
from samfed_monai.federation.workflow import bundle_content, client_config
from tests.config.test_spelling import SLIPS, keys, renamed

FILES = sorted({files[-1] for files in WORKFLOWS.values()})


@pytest.fixture(scope="module", params=sorted(packaged_bundles()))
def root(request) -> Path:
    return find_bundle(request.param)


@pytest.fixture(scope="module")
def validators(root) -> dict[str, jsonschema.Draft202012Validator]:
    return {name: jsonschema.Draft202012Validator(schema) for name, schema in schemas(root).items()}


def misfits(validator: jsonschema.Draft202012Validator, content: Any) -> list[str]:
    return [error.json_path for error in validator.iter_errors(content)]


def test_every_file_as_it_is_shipped_fits_its_schema(root, validators):
    assert sorted(validators) == FILES
    for name, validator in validators.items():
        validator.check_schema(validator.schema)
        assert misfits(validator, read_json(root / "configs" / name)) == []


def test_every_knob_has_a_text_a_default_and_a_type(root, validators):
    for name, validator in validators.items():
        content, properties = read_json(root / "configs" / name), validator.schema["properties"]
        for knob in options_in(name):
            if "#" not in knob and not isinstance(content[knob], (dict, list)):
                described = properties[knob]
                assert described["description"]
                assert described["default"] == content[knob]
                assert {"type", "enum", "anyOf"} & described.keys() or knob == "store_dir", knob


@pytest.mark.parametrize("file", FILES)
def test_every_misspelt_knob_and_argument_of_ours_is_underlined(file, root, validators):
    content = read_json(root / "configs" / file)
    tried = 0
    for index, parts in enumerate(keys(content)):
        holder = content
        for part in parts[:-1]:
            holder = holder[int(part)] if isinstance(holder, list) else holder[part]
        target = holder.get("_target_") if isinstance(holder, dict) else None
        ours = "additionalProperties" in validators[file].schema["$defs"].get(target, {})
        knob = len(parts) == 1 and not isinstance(holder[parts[0]], (dict, list))
        if parts[-1].startswith("_") or not (ours or knob):
            continue
        if knob and isinstance(holder[parts[0]], str) and holder[parts[0]].startswith("@"):
            continue  # a reference may have any name
        assert misfits(validators[file], renamed(content, parts, SLIPS[index % 2](parts[-1]))), parts
        tried += 1
    assert tried >= 3


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("train.json", {"image_size": "224"}),
        ("train.json", {"network_name": "lite_fpn"}),
        ("train.json", {"local_steps": 0}),
        ("train.json", {"terms": {"own": {"_target_": "samfed_monai.handlers.EmaGuide", "name": "ema", "decya": 0.9}}}),
        ("teacher.json", {"size": 225}),
        ("teacher.json", {"adapt": "of"}),
        ("train.json", {"label_resize": "aera"}),
        ("federate.json", {"variant": "samefd"}),
        ("federate.json", {"local_stesp": 36}),
        ("federate.json", {"batch_size": "4"}),
        ("federate.json", {"sites": {"a": {"network": "unet"}}}),
        ("federate.json", {"privacy": {"least_image": 5}}),
        ("evaluate.json", {"learning_rate": 0.1}),
        ("inference.json", {"threshold": 1}),
    ],
)
def test_a_value_that_does_not_fit_is_underlined(file, change, root, validators):
    assert misfits(validators[file], read_json(root / "configs" / file) | change)


@pytest.mark.parametrize("value", [192, 0.5, True, None, "area"])
@pytest.mark.parametrize(
    ("file", "group"), [("train.json", ()), ("federate.json", ()), ("federate.json", ("sites", "hospital-1"))]
)
def test_an_unknown_knob_is_called_one_by_an_editor_and_not_a_wrong_type(file, group, value, validators):
    change = {"image_sise": value}
    for name in reversed(group):
        change = {name: change}
    (error,) = validators[file].iter_errors(change)
    assert error.absolute_path == deque([*group, "image_sise"])
    assert error.schema["errorMessage"].startswith("Unknown option.")


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("train.json", {"_note": "why", "terms#sam_kd#weight": 0.5, "image_size": 192, "device": "@own", "own": {}}),
        ("train.json", {"loss": {"_target_": "my_lab.losses.Loss", "anything": 3}}),
        ("train.json", {"loss": {"_target_": "samfed_monai.losses.StructureLoss", "_disabled_": True}}),
        ("federate.json", {"batch_size": 2, "terms#sam_kd#weight": 0.5, "loss": {"_target_": "torch.nn.BCELoss"}}),
        (
            "federate.json",
            {"sites": {"hospital-1": {"network": "basic_unet", "learning_rate": 0.0001}}, "workers": "auto"},
        ),
        ("evaluate.json", {"image_size": 192, "site": "hospital-1"}),
    ],
)
def test_what_may_stand_there_is_not(file, change, root, validators):
    assert misfits(validators[file], read_json(root / "configs" / file) | change) == []


def outside(keywords: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Ids below a knob with values that its keywords forbid, each just so."""
    step = 1 if keywords.get("multipleOf") else 0.001
    beyond = {"minimum": -1, "exclusiveMinimum": 0, "maximum": step, "exclusiveMaximum": 0, "multipleOf": 1}
    for name in beyond.keys() & keywords.keys():
        yield "", (keywords["minimum"] if name == "multipleOf" else keywords[name]) + beyond[name]
    if "enum" in keywords:
        yield "", "of" if isinstance(keywords["enum"][0], (str, bool)) else 3
    for name, inner in keywords.get("properties", {}).items():
        yield from ((f"#{name}", value) for _, value in outside(inner))


@pytest.mark.parametrize("file", FILES)
def test_a_knob_out_of_its_range_is_refused_by_the_check(file):
    workflow = next(name for name, files in WORKFLOWS.items() if files[-1] == file)
    for knob, keywords in options_in(file).items():
        for below, value in outside(keywords):
            (problem,) = check_bundle(
                find_bundle("samfed_skin"), workflow, overrides={knob + below: value}, ready=False
            )
            assert problem.where == f"command line -> {knob}{below}"
            assert problem.expected.startswith(
                ("at least ", "at most ", "above ", "below ", "a multiple of ", "one of ", "true or false or ")
            )


NULLABLE = ["encoder_learning_rate", "local_steps", "encoder_weights"]


def test_what_null_means_is_said_of_no_other_knob_of_training():
    said = {knob for knob, keywords in options_in("train.json").items() if "`null`" in keywords["description"]}
    assert said == {*NULLABLE, "store_dir"}, "the last is a place"


@pytest.mark.parametrize("knob", NULLABLE)
@pytest.mark.parametrize("workflow", ["train", "federate"])
def test_a_knob_of_which_the_docs_say_what_null_means_takes_it(root, workflow, knob):
    assert check_bundle(root, workflow, overrides={knob: None}, ready=False) == []


@pytest.mark.parametrize("knob", ["learning_rate", "image_size"])
@pytest.mark.parametrize("workflow", ["train", "federate"])
def test_null_is_no_number_where_nothing_reads_it(root, workflow, knob):
    (problem,) = check_bundle(root, workflow, overrides={knob: None}, ready=False)
    assert (problem.found, problem.where) == ("null", f"command line -> {knob}")


def test_a_copy_names_its_schemas_and_nothing_else_is_otherwise(tmp_path, capsys):
    mine, skin = tmp_path / "mine", find_bundle("samfed_skin")
    assert main(["init", "samfed_skin", str(mine)]) == 0
    for name in FILES:
        content = read_json(mine / "configs" / name)
        assert content.pop("$schema") == f"../schemas/{file_name(name)}"
        assert content == read_json(skin / "configs" / name)
        assert read_json(mine / "schemas" / file_name(name))["title"] == f"configs/{name} of mine"
    assert [check_bundle(mine, workflow, ready=False) for workflow in WORKFLOWS] == [[]] * len(WORKFLOWS)
    assert strict_bundle_problems(mine) == []
    assert bundle_content(mine, "samfed") == bundle_content(skin, "samfed"), "a run's fingerprint"
    assert client_config(mine, "samfed", {}).fingerprint() == client_config(skin, "samfed", {}).fingerprint()
    capsys.readouterr()
    assert main(["show", str(mine), "--all"]) == 0
    assert "$schema" not in capsys.readouterr().out
    before = {path: path.read_bytes() for path in mine.rglob("*.json")}
    assert main(["schema", str(mine)]) == 0
    assert {path: path.read_bytes() for path in mine.rglob("*.json")} == before, "once is enough"


def test_monai_merges_a_file_that_names_its_schema(tmp_path):
    from monai.bundle import ConfigParser

    path = tmp_path / "train.json"
    path.write_text(json.dumps({"$schema": "../schemas/train.schema.json", "a": 1, "b": "@a"}))
    parser = ConfigParser()
    parser.read_config(str(path))
    assert parser.get_parsed_content("b") == 1


def test_of_a_packaged_bundle_schemas_are_written_elsewhere_alone(tmp_path, capsys):
    assert main(["schema", "samfed_skin"]) == 2
    assert "`samfed init samfed_skin DIR` first" in capsys.readouterr().err
    assert main(["schema", "samfed_skin", "--output-dir", str(tmp_path / "out")]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [file_name(name) for name in FILES]
    assert not (find_bundle("samfed_skin") / "schemas").exists()


def test_a_bundle_without_a_file_has_no_schema_of_it_and_its_own_variant_is_known(tmp_path):
    mine = tmp_path / "mine"
    shutil.copytree(find_bundle("samfed_polyp"), mine)
    (mine / "configs" / "inference.json").unlink()
    (mine / "configs" / "variants").mkdir()
    (mine / "configs" / "variants" / "ours.json").write_text("{}")
    made = schemas(mine)
    assert "inference.json" not in made
    assert "ours" in made["federate.json"]["properties"]["variant"]["enum"]
    (mine / "configs" / "train.json").write_text("{}")
    write(mine)
    assert read_json(mine / "configs" / "train.json") == {"$schema": "../schemas/train.schema.json"}


@pytest.mark.parametrize(
    ("annotation", "schema"),
    [
        (int, {"type": "integer"}),
        (int | None, {"type": ["integer", "null"]}),
        (float | str | Path, {"type": ["number", "string"]}),
        (list[int], {"type": "array"}),
        (Literal["a", 1], {"enum": ["a", 1]}),
        (bool | Literal["auto"], {"anyOf": [{"type": "boolean"}, {"enum": ["auto"]}]}),
        (Path | Iterator, None),
        (object, None),
    ],
)
def test_annotations_as_schemas(annotation, schema):
    assert typed_as(annotation) == schema


class Base:
    def __init__(self, *, size: int) -> None: ...


class Open(Base):
    def __init__(self, name: str, rate: float = None, steps=3, **kwargs: object) -> None: ...  # type: ignore[assignment]  # noqa: RUF013 - as MONAI


def test_what_a_component_takes_is_an_object_of_its_arguments_and_those_of_its_bases():
    schema = component_schema(Open)
    assert (schema["required"], schema["additionalProperties"]) == (["name"], True)
    assert schema["properties"]["rate"] == {"anyOf": [{"type": "number"}, {"type": "null"}]}
    assert {key: schema["properties"][key] for key in ("name", "steps", "size", "_mode_")} == {
        "name": {"type": "string"},
        "steps": {"type": "integer"},
        "size": {},
        "_mode_": {},
    }
    assert component_schema(Base)["additionalProperties"] is False


class Documented:
    """Does nothing.

    Args:
        one, two: of ``some`` kind, see :class:`~a.b.Other`; on
            two lines.
        three: last.

    Raises:
        Refused: never.
    """


def test_the_docstring_of_an_argument_is_read_whole():
    text = "of `some` kind, see Other; on two lines."
    assert argument_texts(Documented) == {"one": text, "two": text, "three": "last."}
    assert argument_texts(int) == {}


def test_a_whole_number_that_no_tensor_counts_is_refused():
    for name in ("batch_size", "local_steps", "seed"):
        (problem,) = check_bundle(find_bundle("samfed_skin"), "federate", overrides={name: 10**24}, ready=False)
        assert str(problem).endswith(f"{name}: expected at most 9007199254740992, found {10**24}")
