"""``results.json`` follows its schema, and every departure is reported with its place."""

from __future__ import annotations

import re
from typing import Any

import jsonschema
import pytest

from samfed_monai.results import RESULTS_SCHEMA, validate_results

EXCHANGES = r"\['weights', 'predictions', 'prototypes', 'none'\]"
HD95 = r"\['max of directed', 'pooled'\]"
WRONG: dict[str, tuple[Any, str]] = {
    "average#test#dice": (84.9, "expected at most 1, found 84.9"),
    "traffic#up_bytes": (-1, "expected at least 0, found -1"),
    "rounds": ("16", r"expected a whole number, found '16' \(str\); remove the quotes"),
    "seeds#seed": (True, r"expected a whole number, found True \(bool\)"),
    "schema": (2, r"expected one of \[1\], found 2"),
    "skipped#0#reason": (None, r"expected a string, found null"),
    "exchange": ("gradients", f"expected one of {EXCHANGES}, found 'gradients'"),
    "convention": ({"hd95": "median", "empty": "diagonal"}, f"expected one of {HD95}, found 'median'"),
    "networks": ({"Basel": None}, r"expected a string, found null"),
    "traffic#up_bytes_per_round": (-0.5, "expected at least 0, found -0.5"),
    "selected": ("swa", r"expected one of the models \['best', 'last'\], found 'swa'"),
    "unseen": ({"Basel": {}}, "expected a hospital that took no part in training, found a training site"),
}
"""Place to a wrong value and the message."""


def put(results: Any, place: str, value: Any) -> None:
    """Sets the value at a place such as ``skipped#0#reason``."""
    *above, last = place.split("#")
    for key in above:
        results = results[int(key) if key.isdecimal() else key]
    results[last] = value


def test_schema_is_valid_and_allows_additional_keys(results):
    jsonschema.Draft202012Validator.check_schema(RESULTS_SCHEMA)
    assert validate_results(results) == []
    assert validate_results({**results, "later": 1}) == []
    assert list(map(str, validate_results([]))) == ["results.json: expected an object, found [] (list)"]


@pytest.mark.parametrize("place", WRONG)
def test_departure_is_reported_with_place(results, place):
    value, message = WRONG[place]
    put(results, place, value)
    (problem,) = validate_results(results)
    assert re.match(f"results.json -> {place}(#\\w+)?: {message}$", str(problem)), str(problem)


def test_missing_key_is_reported_with_description(results):
    del results["sites"]["Basel"]["test"]["dice"]
    (problem,) = validate_results(results)
    assert "sites#Basel#test#dice: expected mean Dice over the images" in str(problem)
    assert "found no such key" in str(problem)


def test_all_departures_are_reported_together(results):
    of_the_schema = [place for place in WRONG if place not in ("selected", "unseen")]
    for place in of_the_schema:
        put(results, place, WRONG[place][0])
    assert len(validate_results(results)) == len(of_the_schema)
