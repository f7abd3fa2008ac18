"""A workflow's merged configuration and its fingerprint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from samfed_monai.core.errors import Refused
from samfed_monai.federation.workflow import WorkflowConfig, client_config


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    configs = tmp_path / "bundle" / "configs"
    (configs / "variants").mkdir(parents=True)
    train = {"data_root": "/a", "size": 64, "twice": "$@size * 2", "terms": {"kd": {"weight": 1.0}}}
    (configs / "train.json").write_text(json.dumps(train))
    (configs / "variants" / "samfed.json").write_text("{}")
    (configs / "variants" / "no_kd.json").write_text(json.dumps({"terms#kd#weight": 0.0}))
    return configs.parent


def test_files_and_overrides_are_merged_in_order(bundle):
    config = client_config(bundle, "no_kd", {"size": 32})
    assert config.value("terms#kd#weight") == 0.0
    assert config.value("twice") == 64
    assert config.content() == {"size": 32, "twice": "$@size * 2", "terms": {"kd": {"weight": 0.0}}}


def test_an_unknown_variant_is_refused_with_the_names_that_exist(bundle):
    with pytest.raises(
        Refused, match=r"expected one of .*'no_kd', .*'samfed', .*found 'samfeed'; did you mean 'samfed'"
    ):
        client_config(bundle, "samfeed", {})


def test_an_unknown_id_is_refused(bundle):
    with pytest.raises(Refused, match=r"samfed\.json -> teacher_adapt: .*found no such id"):
        client_config(bundle, "samfed", {}).value("teacher_adapt")


def test_places_do_not_enter_the_fingerprint_and_everything_else_does(bundle):
    config = WorkflowConfig(bundle, ("configs/train.json",))
    same = config.with_overrides({"data_root": "/elsewhere", "output_dir": "/b"})
    assert config.fingerprint(seed=0) == same.fingerprint(seed=0)
    assert config.fingerprint(seed=0) != config.fingerprint(seed=1)
    assert config.fingerprint() != config.with_overrides({"size": 65}).fingerprint()


def test_what_the_trainer_does_not_refer_to_does_not_enter_the_fingerprint(bundle):
    train = {"train": {"trainer": {"handlers": ["@terms"], "size": "@size"}}, "terms#kd#weight": "@weight", "weight": 1}
    config = WorkflowConfig(bundle, ("configs/train.json",), train)
    assert config.fingerprint() == config.with_overrides({"twice": 3}).fingerprint()
    assert config.fingerprint() != config.with_overrides({"size": 65}).fingerprint()
    assert config.fingerprint() != config.with_overrides({"weight": 2}).fingerprint()
    disabled = config.with_overrides({"terms#kd#_disabled_": True})
    assert disabled.fingerprint() == disabled.with_overrides({"weight": 2}).fingerprint()


def test_how_it_is_evaluated_does_not_enter_the_fingerprint(bundle):
    config = WorkflowConfig(bundle, ("configs/train.json",))
    assert config.fingerprint() == config.with_overrides({"validate": {"batch": 3}}).fingerprint()


def test_overrides_of_what_only_another_variant_has_can_be_left_out(bundle):
    lost = {"terms#proximal#mu": 0.1, "size#width": 3, "sharing#batches": 1, "terms#kd#weight#0": 2}
    kept = {"size": 32, "terms#kd#weight": 0.5, "terms#new": {"weight": 1.0}, "terms#new#weight": 2.0}
    config = WorkflowConfig(bundle, ("configs/train.json",), {**lost, **kept})
    assert config.without_lost().overrides == kept
    assert config.without_lost().value("terms#new#weight") == 2.0
