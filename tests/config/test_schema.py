"""Ranges of options are declared once, with their texts; what components take is read off their code."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from samfed_monai.config import check_bundle, find_bundle
from samfed_monai.config.options import options_in
from samfed_monai.config.parse import WORKFLOWS
from samfed_monai.config.targets import COMPONENT, annotation_schema, component_schema
from samfed_monai.config.workflow import Job
from samfed_monai.methods.ditto import DittoAlgorithm

FILES = sorted({files[-1] for files in WORKFLOWS.values()})
SKIN = find_bundle("samfed_skin")
RANGES = ("at least ", "at most ", "above ", "below ", "a multiple of ", "one of ", "true or false or ")


def outside(keywords: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Ids below an option with values that its keywords forbid, each just so."""
    step = 1 if keywords.get("multipleOf") else 0.001
    beyond = {"minimum": -1, "exclusiveMinimum": 0, "maximum": step, "exclusiveMaximum": 0, "multipleOf": 1}
    for name in beyond.keys() & keywords.keys():
        yield "", (keywords["minimum"] if name == "multipleOf" else keywords[name]) + beyond[name]
    if "enum" in keywords:
        yield "", "of" if isinstance(keywords["enum"][0], (str, bool)) else 3
    for name, inner in keywords.get("properties", {}).items():
        yield from ((f"#{name}", value) for _, value in outside(inner))


@pytest.mark.parametrize("file", FILES)
def test_option_out_of_range_is_refused(file):
    workflow = next(name for name, files in WORKFLOWS.items() if files[-1] == file)
    wrong = {option: list(outside(keywords)) for option, keywords in options_in(file).items()}
    for turn in range(max(map(len, wrong.values()))):
        given = {option + values[turn][0]: values[turn][1] for option, values in wrong.items() if turn < len(values)}
        problems = check_bundle(SKIN, workflow, overrides=given, ready=False)
        assert sorted(problem.where for problem in problems) == sorted(f"command line -> {key}" for key in given)
        assert all(problem.expected.startswith(RANGES) for problem in problems)


NULLABLE = ["encoder_learning_rate", "local_steps", "encoder_weights", "limit"]


@pytest.mark.parametrize("workflow", ["train", "federate"])
def test_null_is_accepted_only_where_documented(workflow):
    documented = {name for name, keywords in options_in("train.json").items() if "`null`" in keywords["description"]}
    assert documented == {*NULLABLE, "store_dir"}, "the last is a place"
    given = dict.fromkeys((*NULLABLE, "learning_rate", "image_size"))
    problems = check_bundle(SKIN, workflow, overrides=given, ready=False)
    assert {problem.where: problem.found for problem in problems} == {
        "command line -> learning_rate": "null",
        "command line -> image_size": "null",
    }


@pytest.mark.parametrize(
    ("annotation", "schema"),
    [
        (int, {"type": "integer"}),
        (int | None, {"anyOf": [{"type": "integer"}, {"type": "null"}]}),
        (float | Path, {"anyOf": [{"type": "number"}, {"type": "string"}]}),
        (list[int], {"type": "array"}),
        (Literal["a", 1], {"enum": ["a", 1]}),
        (bool | Literal["auto"], {"anyOf": [{"type": "boolean"}, {"enum": ["auto"]}]}),
        (Iterator[int] | Path, {"anyOf": [COMPONENT, {"type": "string"}]}),
        (Hashable, {"type": ["boolean", "integer", "number", "string", "null"]}),
        (Job, COMPONENT),
        (str | torch.device, {"anyOf": [{"type": "string"}, {"type": "string"}]}),
        (int | torch.Tensor, None),
        (int | Any, None),
        (object, None),
    ],
)
def test_annotations_are_converted_to_schemas(annotation, schema):
    assert annotation_schema(annotation) == schema


class Base:
    def __init__(self, *, size: int) -> None: ...


class Open(Base):
    def __init__(self, name: str, rate: float = None, steps=3, **kwargs: object) -> None: ...  # type: ignore[assignment]  # noqa: RUF013 - as MONAI


def test_component_schema_includes_arguments_of_bases():
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
    passed_on = component_schema(DittoAlgorithm)  # to TrainerAlgorithm, which takes no others
    assert (passed_on["additionalProperties"], "seed" in passed_on["properties"]) == (False, True)


def test_oversized_whole_number_is_refused():
    names = ("batch_size", "local_steps", "seed")
    problems = check_bundle(SKIN, "federate", overrides=dict.fromkeys(names, 10**24), ready=False)
    assert sorted(map(str, problems)) == [
        f"command line -> {name}: expected at most 9007199254740992, found {10**24}" for name in names
    ]
