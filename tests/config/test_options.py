"""Where the knobs of a file end, and overrides inside the groups of ``federate.json``."""

from __future__ import annotations

import json

from monai.bundle import ConfigParser

from samfed_monai.config import options_of
from samfed_monai.config.options import groups_of, pairs_for_monai, training_values
from samfed_monai.config.parse import BundleConfig


def test_knobs_are_the_plain_values_above_the_first_object():
    content = {
        "_note_": "text",
        "imports": ["$import os"],
        "rate": 0.1,
        "sites": ["a", "b"],
        "root": None,
        "device": "$torch.device('cpu')",
        "net": {"_target_": "torch.nn.ReLU"},
        "later": 3,
    }
    assert options_of(content) == {"rate": 0.1, "sites": ["a", "b"], "root": None}


def test_code_amid_plain_values_is_a_knob_with_code_in_it():
    assert options_of({"rate": "$1/3", "root": ".", "net": {}}) == {"rate": "$1/3", "root": "."}
    assert options_of({"a": "@b", "b": 1, "c": "@b", "net": {}}) == {"a": "@b", "b": 1}


def test_imports_below_the_knobs_ends_them():
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


def test_overrides_of_sites_are_put_into_the_whole_group_of_each_site(tmp_path):
    federate = {"sites": {"site-1": {"limit": 4}}}
    given = {"sites#site-1#network": "unet", "sites#site-2#terms#kd#weight": 0.5, "sites#site-2#network": "unet"}
    sites = {
        "site-1": {"limit": 4, "network": "unet"},
        "site-2": {"terms#kd#weight": 0.5, "network": "unet"},
    }
    assert groups_of(layers(tmp_path, federate, given))["sites"] == sites
    both = {"sites": {"a": {}}, "sites#b#limit": 2}
    assert groups_of(layers(tmp_path, federate, both))["sites"] == {"a": {}, "b": {"limit": 2}}


def test_what_is_set_of_the_sites_training_is_what_they_are_sent(tmp_path):
    federate = {"rounds": 3, "limit": "@rounds", "terms#kd#weight": 0.1, "output_dir": "runs", "teacher": {"views": 8}}
    train = {"steps": 1, "limit": None, "rate": 0.1, "seed": 0, "output_dir": "out", "terms": {"kd": {"weight": 1}}}
    config = layers(tmp_path, federate, {"rounds": 2, "terms": {"kd": {}}, "steps": "@rate", "seed": 4}, train)
    assert training_values(config) == {"limit": 2, "terms": {"kd": {}}, "steps": "@rate"}
    assert made({"teacher": pairs_for_monai(config)["teacher"]}) == {"teacher": {"views": 8}}


def test_what_a_variant_sets_is_the_sites_own_already(tmp_path):
    config = layers(tmp_path, {"limit": 3}, {"steps": 2})
    config.base = 2
    assert training_values(config) == {"steps": 2}


TERM = {"_target_": "samfed_monai.handlers.BatchGuide", "name": "label", "key": "@guides::key"}


def test_a_component_for_the_sites_reaches_the_job_as_it_was_written(tmp_path):
    train = {"terms": {}, "guides": {}, "local_steps": None}
    federate = {"rounds": 3, "local_steps": "@rounds", "terms#own": TERM, "sites": {}}
    given = {"guides#label": TERM, "sites#a#guides#label": [TERM], "sites#a#limit": 2}
    pairs = pairs_for_monai(layers(tmp_path, federate, given, train))
    sent, sites = (made({name: pairs[name]})[name] for name in ("job#train", "sites"))
    assert sent == {"local_steps": 3, "terms#own": TERM, "guides#label": TERM}
    assert sites == {"a": {"guides#label": [TERM], "limit": 2}}
    sent["terms#own"]["name"] = "another"
    assert made({"job#train": pairs["job#train"]})["job#train"]["terms#own"] == TERM
