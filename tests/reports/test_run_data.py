from __future__ import annotations

import pytest

from samfed_monai.config import find_bundle
from samfed_monai.errors import Refused
from samfed_monai.federation.stages.workflow_config import client_config
from samfed_monai.io import write_json
from samfed_monai.reports import RunData
from samfed_monai.reports.caveats import VARIANTS

#: What travels in variants that do not send weights.
TRAVELS = {
    **dict.fromkeys(("local_only", "local_sam", "zero_shot"), "none"),
    **dict.fromkeys(("fedmd", "hssf", "hssf_compat", "heterogeneous"), "predictions"),
    "fedproto": "prototypes",
}
OWN = {*TRAVELS, "fedbn", "fedper", "fedrep", "pfedsam", "ditto", "fedicra", "apple", "fca"}


def test_it_reads_a_run(run_folder):
    run = RunData.read(run_folder)
    assert run.sites == ["Basel", "Lübeck", "Porto", "São Paulo"]
    assert run.seed == 0
    assert len(run.rounds) == 64
    assert run.setting("datalist").endswith("list.json")
    assert run.setting("nothing") is None
    assert run.skipped == [{"round": 5, "site": "Porto", "reason": "layer4.1.conv2.weight: NaN or infinity"}]


def test_a_knob_that_run_json_leaves_out_is_read_from_the_command(run_folder):
    run = RunData.read(run_folder)
    bare = RunData(
        run.folder, {**run.results, "command": "python -m monai.bundle run --datalist 'my list.json' --data_root=D"}
    )
    assert (bare.setting("datalist"), bare.setting("data_root")) == ("my list.json", "D")
    assert bare.setting("data") is None


@pytest.mark.parametrize("variant", sorted({*VARIANTS} - {"teacher", "own_teacher"}))
def test_whose_models_a_run_ends_with(tmp_path, variant):
    results = {"exchange": TRAVELS.get(variant, "weights"), "networks": {"a": "one", "b": "one"}}
    content = client_config(find_bundle("samfed_skin"), variant, {}).content()
    run = RunData(tmp_path, results, {"config": {"variant": variant, "client": content}})
    assert run.own_models == (variant in OWN)


def test_whose_models_a_run_ends_with_is_not_its_variants_name_alone(tmp_path):
    client = {"network_name": "sam_vit_t", "personal": [], "sharing": None}
    weights = {"exchange": "weights", "networks": {"a": "one", "b": "one"}}
    for results, config, own in (
        ({}, {}, False),
        (weights, {}, False),
        (weights, {"client": {"personal": ["head.*"]}}, True),
        (weights, {"client": {"sharing": {}, "strategy": {"_target_": "mine.OneForEach"}}}, False),
        (weights, {"client": {"sharing": {"_target_": "mine.Own"}, "strategy": {"_target_": "mine.OneForEach"}}}, True),
        (weights, {"client": {"strategy": "@mine", "network_def": "@mine", "network_name": None}}, False),
        (weights, {"client": client}, True),
        (weights, {"client": {**client, "network_def": {"experts": 0, "decoder": "shared"}}}, False),
        (weights, {"client": {**client, "network_def": {"experts": 0}}}, True),
        (weights, {"client": {**client, "network_def": {"full": True}}}, False),
        ({**weights, "networks": {"a": "one", "b": "two"}}, {}, True),
    ):
        assert RunData(tmp_path, results, {"config": config}).own_models is own, (results, config)


def test_image_scores_are_numbers(run_folder):
    rows = RunData.read(run_folder).image_scores("Lübeck")
    assert len(rows) == 7
    assert all(isinstance(row["dice"], float) and row["mask"] for row in rows)
    assert RunData.read(run_folder).image_scores("nowhere") == []


def test_skipped_updates_come_from_the_rounds_where_results_name_none(run_folder):
    run = RunData.read(run_folder)
    run.results["skipped"] = []
    assert run.skipped == [{"round": 5, "site": "Porto", "reason": "layer4.1.conv2.weight: NaN or infinity"}]


def test_an_unfinished_run_is_refused(tmp_path):
    with pytest.raises(Refused, match=r"expected a finished run folder, found no results\.json; name a finished run"):
        RunData.read(tmp_path)


def test_results_that_do_not_follow_the_schema_are_refused(tmp_path):
    write_json(tmp_path / "results.json", {"schema": 1})
    with pytest.raises(Refused, match=r"results\.json -> variant: expected name of the variant"):
        RunData.read(tmp_path)
