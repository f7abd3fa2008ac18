"""Tests of running a workflow: overrides inside the groups of ``federate.json``."""

from __future__ import annotations

import json

from samfed_monai.commands.run_bundle import whole_groups


def test_overrides_inside_a_group_are_put_into_the_whole_group(tmp_path):
    file = tmp_path / "federate.json"
    file.write_text(json.dumps({"rounds": 3, "client": {"steps": "@steps"}, "teacher": {"views": 8}}))
    overrides = {"rounds": 2, "client#terms#kd#weight": 0.5, "client#limit": 4}
    assert whole_groups([file], overrides) == {
        "rounds": 2,
        "client": {"steps": "@steps", "terms#kd#weight": 0.5, "limit": 4},
    }
