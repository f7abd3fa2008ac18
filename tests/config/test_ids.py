"""Tests of ids."""

from __future__ import annotations

from samfed_monai.config.parse import flat


def test_nested_values_become_ids_and_components_stay_whole():
    component = {"_target_": "torch.nn.Identity"}
    assert flat({"a": {"b": {"c": 1}, "d": component}, "e": 2, "f#g": 3, "h": {}}) == {
        "a#b#c": 1,
        "a#d": component,
        "e": 2,
        "f#g": 3,
        "h": {},
    }
