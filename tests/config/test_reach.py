from __future__ import annotations

import pytest

from samfed_monai.config.reach import reached

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
