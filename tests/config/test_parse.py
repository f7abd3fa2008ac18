"""Ids of a configuration, and what of it is reached."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.bundle import ReferenceResolver

from samfed_monai.config.monai_parser import ConfigParser
from samfed_monai.config.parse import REFERRING, flat, parsed, reached


def test_nested_values_become_ids_and_components_stay_whole():
    component = {"_target_": "torch.nn.Identity"}
    assert flat({"a": {"b": {"c": 1}, "d": component}, "e": 2, "f#g": 3, "h": {}}) == {
        "a#b#c": 1,
        "a#d": component,
        "e": 2,
        "f#g": 3,
        "h": {},
    }


def test_what_a_parser_has_at_an_id_is_built_and_what_it_has_not_is_the_default():
    parser = ConfigParser({"rate": 0.5, "layers": [{"_target_": "torch.nn.ReLU"}], "twice": "$2 * @rate", "none": None})
    assert parsed(parser, "twice") == 1.0
    assert isinstance(parsed(parser, "layers#0"), torch.nn.ReLU)
    assert parsed(parser, "none", 3) is None
    assert [parsed(parser, name, 3) for name in ("rat", "layers#1", "layers#first", "rate#0")] == [3, 3, 3, 3]
    assert parsed(None, "rate") is None


TEXT = st.text("#:@$% aÄ", max_size=8).filter(lambda text: not text.startswith(REFERRING))


@given(TEXT, TEXT)
def test_text_reaches_a_component_as_it_is_whatever_is_in_it(text, name):
    content = {"path": text, "list": [text, {name: "@path"}], "made": {"_target_": "dict", "a": "@path", "b": [text]}}
    parser = ConfigParser(content)
    assert parser.get_parsed_content("path") == text
    assert parser.get_parsed_content("list") == [text, {name: text}]
    assert parser.get_parsed_content("made") == {"a": text, "b": [text]}


def test_references_keep_the_old_spelling_of_ids():
    parser = ConfigParser({"a": {"b": 1, "c": "@#b", "d": ["@##b", "%a#b"]}, "e": "@a#c", "f": "$@a#b + 1"})
    found = [parser.get_parsed_content(id_) for id_ in ("e", "f", "a#d")]
    assert found == [1, 2, [1, 1]]


def test_monai_itself_still_rewrites_text():
    assert ReferenceResolver.update_refs_pattern.__wrapped__("runs/C#", {}) == "runs/C::"
    assert ConfigParser.resolve_relative_ids.__wrapped__("a", "runs/C#") == "runs/C::"


CONTENT = {
    "rate": 0.1,
    "rule": "teacher",
    "terms": {"a": {"_target_": "A", "rule": "@rule", "_disabled_": True}, "b": {"_target_": "B", "w": 1.0}},
    "train": {"handlers": ["@terms"], "optimizer": "@optimizer"},
    "optimizer": {"_target_": "O", "lr": "@rate"},
    "report": {"_target_": "R", "title": "x"},
}


def test_what_the_roots_lead_to_and_no_more() -> None:
    found = reached(CONTENT, ["train", "absent"])
    assert list(found) == ["rate", "terms", "train", "optimizer"]
    assert found["terms"] == {"a": None, "b": {"_target_": "B", "w": 1.0}}
    assert reached(CONTENT, ["report"]) == {"report": CONTENT["report"]}


def test_of_a_disabled_component_what_a_reference_takes_is_reached() -> None:
    b = {"_target_": "B", "rule": "@terms#a#rule"}
    content = {**CONTENT, "terms": {**CONTENT["terms"], "b": b}}
    for roots in (["train"], ["terms"]):
        found = reached(content, roots)
        assert found["terms"] == {"a": {"rule": "@rule"}, "b": b}
        assert found["rule"] == "teacher"


def test_a_component_that_is_enabled_brings_what_it_refers_to() -> None:
    terms = {"a": {"_target_": "A", "rule": "@rule", "_disabled_": False}}
    assert "rule" in reached({**CONTENT, "terms": terms}, ["train"])


@pytest.mark.parametrize("text", ["$@rate * 2", "@rate", "$f(@rule, @rate)"])
def test_expressions_refer_too(text: str) -> None:
    assert "rate" in reached({"rate": 1, "rule": 2, "train": {"x": [text]}}, ["train"])


def test_a_macro_may_copy_from_anywhere() -> None:
    assert reached({"train": "%report#title", "report": {"title": 1}}, ["train"]).keys() == {"train", "report"}


def test_references_in_a_circle_end() -> None:
    assert reached({"a": "@b", "b": "@a"}, ["a"]) == {"a": "@b", "b": "@a"}


def test_of_a_group_only_the_parts_that_are_referred_to() -> None:
    guides = {"sam": {"_target_": "S", "key": "@rule"}, "ema": {"_target_": "E", "decay": "@rate"}}
    content = {"rate": 0.9, "rule": "teacher", "guides": guides, "train": {"masks_for": "@guides#sam"}}
    found = reached(content, ["train"])
    assert found == {"rule": "teacher", "guides": {"sam": guides["sam"]}, "train": content["train"]}
    assert reached({**content, "train": {"masks_for": "@guides#sam#key"}}, ["train"])["guides"] == {
        "sam": {"key": "@rule"}
    }
    assert reached({**content, "train": ["@guides#sam", "@guides"]}, ["train"])["guides"] == guides


def test_what_is_referred_to_inside_a_list_or_not_there_brings_what_holds_it() -> None:
    content = {"steps": [{"a": 1}, {"b": 2}], "group": {"x": 1, "y": 2}, "train": ["@steps#1#b", "@group#z"]}
    assert reached(content, ["train"]) == content


def test_a_reference_to_a_sibling_keeps_its_whole_group() -> None:
    content = {"group": {"a": {"x": "@##b"}, "b": 1, "c": 2}, "train": "@group#a"}
    assert reached(content, ["train"]) == content
