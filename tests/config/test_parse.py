"""Ids of a configuration, what of it is reached, which are options, and what of a federation's is for its groups."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.bundle import ReferenceResolver

from samfed_monai.config.monai_parser import ConfigParser
from samfed_monai.config.options import groups_of, options_of, pairs_for_monai, training_values
from samfed_monai.config.parse import REFERRING, BundleConfig, flat, parsed, reached


def test_nested_values_are_flattened_and_components_kept():
    component = {"_target_": "torch.nn.Identity"}
    nested = {"a": {"b": {"c": 1}, "d": component}, "e": 2, "f#g": 3, "h": {}}
    assert flat(nested) == {"a#b#c": 1, "a#d": component, "e": 2, "f#g": 3, "h": {}}


def test_parsed_returns_built_value_or_default():
    parser = ConfigParser({"rate": 0.5, "layers": [{"_target_": "torch.nn.ReLU"}], "twice": "$2 * @rate", "none": None})
    assert parsed(parser, "twice") == 1.0
    assert isinstance(parsed(parser, "layers#0"), torch.nn.ReLU)
    assert parsed(parser, "none", 3) is None
    assert [parsed(parser, name, 3) for name in ("rat", "layers#1", "layers#first", "rate#0")] == [3, 3, 3, 3]
    assert parsed(None, "rate") is None


TEXT = st.text("#:@$% aÄ", max_size=8).filter(lambda text: not text.startswith(REFERRING))


@given(TEXT, TEXT)
def test_text_reaches_component_unchanged(text, name):
    content = {"path": text, "list": [text, {name: "@path"}], "made": {"_target_": "dict", "a": "@path", "b": [text]}}
    parser = ConfigParser(content)
    assert parser.get_parsed_content("path") == text
    assert parser.get_parsed_content("list") == [text, {name: text}]
    assert parser.get_parsed_content("made") == {"a": text, "b": [text]}


def test_references_accept_old_id_syntax():
    parser = ConfigParser({"a": {"b": 1, "c": "@#b", "d": ["@##b", "%a#b"]}, "e": "@a#c", "f": "$@a#b + 1"})
    assert [parser.get_parsed_content(id_) for id_ in ("e", "f", "a#d")] == [1, 2, [1, 1]]


def test_monai_rewrites_hash_in_text():
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


def test_reached_returns_only_ids_used_by_roots() -> None:
    found = reached(CONTENT, ["train", "absent"])
    assert list(found) == ["rate", "terms", "train", "optimizer"]
    assert found["terms"] == {"a": None, "b": {"_target_": "B", "w": 1.0}}
    assert reached(CONTENT, ["report"]) == {"report": CONTENT["report"]}
    enabled = {"a": {"_target_": "A", "rule": "@rule", "_disabled_": False}}
    assert "rule" in reached({**CONTENT, "terms": enabled}, ["train"])


def test_reached_keeps_referenced_part_of_disabled_component() -> None:
    b = {"_target_": "B", "rule": "@terms#a#rule"}
    content = {**CONTENT, "terms": {**CONTENT["terms"], "b": b}}
    for roots in (["train"], ["terms"]):
        found = reached(content, roots)
        assert found["terms"] == {"a": {"rule": "@rule"}, "b": b}
        assert found["rule"] == "teacher"


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({"train": "@a", "a": "@b", "b": "@a", "c": 1}, {"train", "a", "b"}),
        ({"train": {"x": ["$@a * 2"]}, "a": 1, "b": 2}, {"train", "a"}),
        ({"train": "$f(@a, @b)", "a": 1, "b": 2, "c": 3}, {"train", "a", "b"}),
        ({"train": "%a#b", "a": {"b": 1}, "c": 2}, {"train", "a", "c"}),
    ],
    ids=["in_a_circle", "in_an_expression", "two_in_one", "a_macro_may_copy_from_anywhere"],
)
def test_reached_follows_references(content, found) -> None:
    assert reached(content, ["train"]).keys() == found


def test_reached_keeps_only_referenced_parts_of_group() -> None:
    guides = {"sam": {"_target_": "S", "key": "@rule"}, "ema": {"_target_": "E", "decay": "@rate"}}
    content = {"rate": 0.9, "rule": "teacher", "guides": guides, "train": {"masks_for": "@guides#sam"}}
    found = reached(content, ["train"])
    assert found == {"rule": "teacher", "guides": {"sam": guides["sam"]}, "train": content["train"]}
    key = {**content, "train": {"masks_for": "@guides#sam#key"}}
    assert reached(key, ["train"])["guides"] == {"sam": {"key": "@rule"}}
    assert reached({**content, "train": ["@guides#sam", "@guides"]}, ["train"])["guides"] == guides


@pytest.mark.parametrize(
    "content",
    [
        {"steps": [{"a": 1}, {"b": 2}], "group": {"x": 1, "y": 2}, "train": ["@steps#1#b", "@group#z"]},
        {"group": {"a": {"x": "@##b"}, "b": 1, "c": 2}, "train": "@group#a"},
    ],
    ids=["inside_a_list_or_not_there", "a_sibling"],
)
def test_reached_keeps_whole_container_of_reference(content) -> None:
    assert reached(content, ["train"]) == content


def test_options_are_plain_values_before_first_object():
    options = {"rate": 0.1, "sites": ["a", "b"], "root": None}
    computed = {"device": "$torch.device('cpu')", "net": {"_target_": "torch.nn.ReLU"}, "later": 3}
    assert options_of({"_note_": "text", "imports": ["$import os"], **options, **computed}) == options


def test_options_may_hold_code_and_end_at_imports():
    assert options_of({"rate": "$1/3", "root": ".", "net": {}}) == {"rate": "$1/3", "root": "."}
    assert options_of({"a": "@b", "b": 1, "c": "@b", "net": {}}) == {"a": "@b", "b": 1}
    assert options_of({"rate": 1, "imports": ["$import os"], "device": "$torch", "amp": "auto"}) == {"rate": 1}


def layers(tmp_path, federate, overrides, train=None):
    (tmp_path / "train.json").write_text(json.dumps({"steps": 1, "limit": None} if train is None else train))
    (tmp_path / "federate.json").write_text(json.dumps(federate))
    return BundleConfig([tmp_path / "train.json", tmp_path / "federate.json"], overrides)


def made(pairs):
    """What MONAI makes of them."""
    parser = ConfigParser({})
    for name, value in pairs.items():
        parser.set(value, name)
    return {name: parser.get_parsed_content(name) for name in pairs}


def test_site_overrides_are_grouped_per_site(tmp_path):
    federate = {"sites": {"site-1": {"limit": 4}}}
    given = {"sites#site-1#network": "unet", "sites#site-2#terms#kd#weight": 0.5, "sites#site-2#network": "unet"}
    sites = {"site-1": {"limit": 4, "network": "unet"}, "site-2": {"terms#kd#weight": 0.5, "network": "unet"}}
    assert groups_of(layers(tmp_path, federate, given))["sites"] == sites
    both = {"sites": {"a": {}}, "sites#b#limit": 2}
    assert groups_of(layers(tmp_path, federate, both))["sites"] == {"a": {}, "b": {"limit": 2}}


def test_training_values_hold_options_set_for_sites(tmp_path):
    federate = {"rounds": 3, "limit": "@rounds", "terms#kd#weight": 0.1, "output_dir": "runs", "teacher": {"views": 8}}
    train = {"steps": 1, "limit": None, "rate": 0.1, "seed": 0, "output_dir": "out", "terms": {"kd": {"weight": 1}}}
    config = layers(tmp_path, federate, {"rounds": 2, "terms": {"kd": {}}, "steps": "@rate", "seed": 4}, train)
    assert training_values(config) == {"limit": 2, "terms": {"kd": {}}, "steps": "@rate"}
    assert made({"teacher": pairs_for_monai(config)["teacher"]}) == {"teacher": {"views": 8}}


def test_training_values_exclude_values_of_variant(tmp_path):
    config = layers(tmp_path, {"limit": 3}, {"steps": 2})
    config.base = 2
    assert training_values(config) == {"steps": 2}


TERM = {"_target_": "samfed_monai.handlers.BatchGuide", "name": "label", "key": "@guides::key"}


def test_site_components_reach_job_unchanged(tmp_path):
    train = {"terms": {}, "guides": {}, "local_steps": None}
    federate = {"rounds": 3, "local_steps": "@rounds", "terms#own": TERM, "sites": {}}
    given = {"guides#label": TERM, "sites#a#guides#label": [TERM], "sites#a#limit": 2}
    pairs = pairs_for_monai(layers(tmp_path, federate, given, train))
    sent, sites = (made({name: pairs[name]})[name] for name in ("job#train", "sites"))
    assert sent == {"local_steps": 3, "terms#own": TERM, "guides#label": TERM}
    assert sites == {"a": {"guides#label": [TERM], "limit": 2}}
    sent["terms#own"]["name"] = "another"
    assert made({"job#train": pairs["job#train"]})["job#train"]["terms#own"] == TERM
