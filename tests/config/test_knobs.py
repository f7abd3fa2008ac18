"""Where the knobs of a file end."""

from __future__ import annotations

from samfed_monai.config import knobs_of


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
