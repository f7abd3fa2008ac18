from __future__ import annotations

import copy
import re

import jsonschema
import pytest

from samfed_monai.results import RESULTS_SCHEMA, validate_results


def test_the_schema_is_a_json_schema_and_holds_for_a_run(results):
    jsonschema.Draft202012Validator.check_schema(RESULTS_SCHEMA)
    jsonschema.validate(results, RESULTS_SCHEMA)
    assert validate_results(results) == []


def _drop(results):
    del results["sites"]["Basel"]["test"]["dice"]


def _percent(results):
    results["average"]["test"]["dice"] = 84.9


def _negative(results):
    results["traffic"]["up_bytes"] = -1


def _text(results):
    results["rounds"] = "16"


def _truth(results):
    results["seeds"]["seed"] = True


def _version(results):
    results["schema"] = 2


def _reason(results):
    results["skipped"][0]["reason"] = None


WRONG = [
    (_drop, "sites#Basel#test#dice: expected mean Dice over the images.* found no such key"),
    (_percent, "average#test#dice: expected at most 1, found 84.9"),
    (_negative, "traffic#up_bytes: expected at least 0, found -1"),
    (_text, r"results.json -> rounds: expected integer, found '16' \(str\)"),
    (_truth, r"seeds#seed: expected integer, found True \(bool\)"),
    (_version, r"schema: expected one of \[1\], found 2"),
    (_reason, r"skipped#0#reason: expected string, found None"),
]


@pytest.mark.parametrize(("spoil", "message"), WRONG)
def test_a_departure_is_named_with_its_place_and_jsonschema_agrees(results, spoil, message):
    spoil(results)
    (problem,) = validate_results(results)
    assert re.search(message, str(problem)), str(problem)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(results, RESULTS_SCHEMA)


def test_all_departures_are_listed_at_once(results):
    for spoil, _ in WRONG:
        spoil(results)
    assert len(validate_results(results)) == len(WRONG)


def test_the_selected_model_must_be_there(results):
    results["selected"] = "swa"
    (problem,) = validate_results(results)
    assert str(problem) == "results.json -> selected: expected one of the models ['best', 'last'], found 'swa'"


def test_what_is_not_an_object_is_said_to_be_none():
    (problem,) = validate_results([])
    assert str(problem) == "results.json: expected object, found [] (list)"


def test_unknown_keys_are_allowed(results):
    more = copy.deepcopy(results)
    more["later"] = 1
    assert validate_results(more) == []


def _exchange(results):
    results["exchange"] = "gradients"


def _convention(results):
    results["convention"] = {"hd95": "median", "empty": "diagonal"}


def _network(results):
    results["networks"] = {"Basel": None}


def _per_round(results):
    results["traffic"]["up_bytes_per_round"] = -0.5


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_exchange, r"exchange: expected one of \['weights', 'predictions', 'prototypes', 'none'\], found gradients"),
        (_convention, r"convention#hd95: expected one of \['max of directed', 'pooled'\], found median"),
        (_network, r"networks#Basel: expected string, found None"),
        (_per_round, r"traffic#up_bytes_per_round: expected at least 0, found -0.5"),
    ],
)
def test_optional_keys_are_checked_where_they_are(results, spoil, message):
    test_a_departure_is_named_with_its_place_and_jsonschema_agrees(results, spoil, message)


def test_a_site_of_the_training_is_not_unseen(results):
    results["unseen"] = {"Basel": {}}
    (problem,) = validate_results(results)
    assert "unseen#Basel: expected a hospital that is no site of the training, found a site of the same" in str(problem)
