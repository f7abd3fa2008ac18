"""What moved since version 0.1 is found under its old name, with a warning; nothing stands in the table for long."""

from __future__ import annotations

import importlib
import importlib.util
import warnings

import pytest

from samfed_monai.config.targets import resolve_target
from samfed_monai.core.io import canonical_hash
from samfed_monai.core.moved import MOVED, config_hash, first_spelling, found_where_moved

NAMES = [
    (old, now, name)
    for old, places in MOVED.items()
    for now, names in places.items()
    for name in names.split()
    if importlib.util.find_spec(now)  # a method whose file was deleted has no names to find
]


@pytest.mark.parametrize(("old", "now", "name"), NAMES)
def test_every_moved_name_is_found_with_a_warning_that_names_its_new_place(old, now, name):
    find = found_where_moved(old, getattr)
    with pytest.warns(FutureWarning, match=f"{old}.{name} is {now}.{name} now"):
        found = find(name)
    with warnings.catch_warnings(action="error"):
        assert find(name) is found, "said once"
    assert getattr(importlib.import_module(old), name) is found
    assert found is getattr(importlib.import_module(now), name)
    assert name not in dir(importlib.import_module(old))


@pytest.mark.filterwarnings("ignore:.*write the new one:FutureWarning")
def test_a_bundle_of_version_0_1_may_name_one():
    strategy = resolve_target("samfed_monai.federation.FedAvg", "federate.json -> strategy#_target_")
    assert strategy.__name__ == "FedAvg"


def test_an_unknown_name_is_unknown_still():
    with pytest.raises(AttributeError, match="FedAverage"):
        importlib.import_module("samfed_monai.federation").FedAverage  # noqa: B018


def test_hashes_are_taken_of_the_first_spelling():
    now = {
        "strategy": {"_target_": "samfed_monai.methods.fedavg.FedAvg"},
        "terms": [{"_target_": "monai.losses.DiceLoss"}],
    }
    before = {
        "strategy": {"_target_": "samfed_monai.federation.FedAvg"},
        "terms": [{"_target_": "monai.losses.DiceLoss"}],
    }
    assert first_spelling(now) == first_spelling(before) == before


def test_ids_that_end_in_a_target_are_spelt_as_before_too():
    now = {"sharing#_target_": "samfed_monai.methods.fedproto.PrototypeSharing"}
    assert first_spelling(now) == {"sharing#_target_": "samfed_monai.federation.PrototypeSharing"}


def test_a_configuration_has_one_hash_in_both_spellings():
    now = {"fit": {"_target_": "samfed_monai.teacher.TeacherFit", "size": 224}}
    before = {"fit": {"_target_": "samfed_monai.networks.TeacherFit", "size": 224}}
    assert config_hash(now) == config_hash(before) == canonical_hash(before)
    assert config_hash(now) != config_hash({"fit": {**now["fit"], "size": 256}})
