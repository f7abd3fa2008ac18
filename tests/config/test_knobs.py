"""Where the knobs of a file end, and overrides inside the groups of ``federate.json``."""

from __future__ import annotations

import json

from monai.bundle import ConfigParser

from samfed_monai.config import knobs_of
from samfed_monai.config.knobs import whole_groups


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
    assert knobs_of(content) == {"rate": 0.1, "sites": ["a", "b"], "root": None}


def test_code_amid_plain_values_is_a_knob_with_code_in_it():
    assert knobs_of({"rate": "$1/3", "root": ".", "net": {}}) == {"rate": "$1/3", "root": "."}
    assert knobs_of({"a": "@b", "b": 1, "c": "@b", "net": {}}) == {"a": "@b", "b": 1}


def test_imports_below_the_knobs_ends_them():
    assert knobs_of({"rate": 1, "imports": ["$import os"], "device": "$torch", "amp": "auto"}) == {"rate": 1}


def test_overrides_of_sites_are_put_into_the_whole_group_of_each_site(tmp_path):
    file = tmp_path / "federate.json"
    file.write_text(json.dumps({"sites": {"site-1": {"limit": 4}}}))
    given = {"sites#site-1#network": "unet", "sites#site-2#terms#kd#weight": 0.5, "sites#site-2#network": "unet"}
    sites = {
        "site-1": {"limit": 4, "network": "unet"},
        "site-2": {"terms#kd#weight": 0.5, "network": "unet"},
    }
    assert whole_groups([file], given) == {"sites": sites}
    assert whole_groups([file], {"sites#b#limit": 2, "sites": {"a": {}}}) == {"sites": {"a": {}, "b": {"limit": 2}}}


def test_overrides_inside_a_group_are_put_into_the_whole_group(tmp_path):
    file = tmp_path / "federate.json"
    file.write_text(json.dumps({"rounds": 3, "client": {"steps": "@steps"}, "teacher": {"views": 8}}))
    overrides = {"rounds": 2, "client#terms#kd#weight": 0.5, "client#limit": 4}
    assert whole_groups([file], overrides) == {
        "rounds": 2,
        "client": {"steps": "@steps", "terms#kd#weight": 0.5, "limit": 4},
    }


TERM = {"_target_": "samfed_monai.handlers.BatchGuide", "name": "label", "key": "@guides::key"}


def test_a_component_inside_a_group_reaches_the_job_as_it_was_written(tmp_path):
    file = tmp_path / "federate.json"
    file.write_text(json.dumps({"steps": 3, "client": {"local_steps": "@steps", "terms#own": TERM}, "sites": {}}))
    given = whole_groups([file], {"client#guides#label": TERM, "sites#a#guides#label": [TERM], "sites#a#limit": 2})
    parser = ConfigParser({"steps": 3, **given})
    client, sites = parser.get_parsed_content("client"), parser.get_parsed_content("sites")
    assert client == {"local_steps": 3, "terms#own": TERM, "guides#label": TERM}
    assert sites == {"a": {"guides#label": [TERM], "limit": 2}}
    client["terms#own"]["name"] = "another"
    assert ConfigParser({"steps": 3, **given}).get_parsed_content("client")["terms#own"] == TERM


def test_groups_without_a_component_stay_as_they_are(tmp_path):
    file = tmp_path / "federate.json"
    file.write_text(json.dumps({"client": {"local_steps": 1}, "teacher": None}))
    assert whole_groups([file], {"rounds": 2}) == {"rounds": 2}


def test_what_a_federation_gives_every_site_is_not_taken_from_the_command_line():
    from samfed_monai.config import packaged_bundle
    from samfed_monai.config.knobs import GIVEN, routed

    files = [packaged_bundle("samfed_skin") / "configs" / "federate.json"]
    assert "client#batch_size" in routed(files, {"batch_size": 2})
    for name in ("epochs", "val_interval"):
        assert name in GIVEN
        assert set(routed(files, {name: 2})) == {name}  # which federate.json has not, and so is refused
