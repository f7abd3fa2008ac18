"""Tests of running a workflow: overrides inside the groups of ``federate.json``."""

from __future__ import annotations

import json

from samfed_monai.commands.run_bundle import whole_groups


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
