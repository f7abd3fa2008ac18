"""The sentence about the measured results of a method: gains and losses against another one."""

import pytest

from samfed_monai.core.io import read_json, write_json
from study.measured import measured
from study.record import add_to_record
from tests.reports.runs import write_row


def run_of(folder, row, seed, sites):
    """A run of a row, with a test Dice of each site."""
    run = write_row(folder / row / f"seed-{seed}", row, row, seed, 0.5)
    results = read_json(run / "results.json")
    for site, dice in sites.items():
        results["sites"][site]["test"]["dice"] = dice
    write_json(run / "results.json", results)
    return run


@pytest.fixture
def records(tmp_path):
    folder = tmp_path / "records"
    runs = [
        run_of(tmp_path, "dp_only", 0, {"a": 0.6, "b": 0.6}),
        run_of(tmp_path, "no_sam", 0, {"a": 0.5, "b": 0.7}),
        run_of(tmp_path, "no_sam", 1, {"a": 0.5, "b": 0.5}),
        run_of(tmp_path, "ditto", 0, {"a": 0.75, "b": 0.6}),
        run_of(tmp_path, "ditto", 1, {"a": 0.65, "b": 0.3}),
        run_of(tmp_path, "ditto", 2, {"a": 0.9, "b": 0.9}),
    ]
    add_to_record(folder / "related-polyp.jsonl", runs)
    add_to_record(folder / "related-labelled.jsonl", [run_of(tmp_path / "own", "fedsam", 0, {"a": 0.4, "b": 0.8})])
    return folder


def test_gains_and_losses_are_over_common_seeds_and_sorted(records):
    assert measured(records)["ditto"] == (
        "sites without labels, 3 seeds: mean over the sites 0.683, +0.025 against `no_sam`; "
        "higher at a +0.200; lower at b -0.150"
    )


def test_runs_of_an_earlier_form_count_until_the_method_is_run_again(tmp_path):
    record, before = tmp_path / "related-polyp.jsonl", {"earlier": "half a step"}
    add_to_record(record, [write_row(tmp_path / str(seed), "apple", "apple", seed, 0.5, **before) for seed in (0, 1)])
    assert measured(tmp_path)["apple"].endswith("over the sites 0.500; the runs are of an earlier form: half a step")
    add_to_record(record, [write_row(tmp_path / "new", "apple", "apple", 0, 0.75)])
    assert measured(tmp_path)["apple"] == "sites without labels, 1 seed: mean over the sites 0.750"


def test_without_records_only_exclusions_are_listed(tmp_path):
    assert measured(tmp_path) == {
        "cpss_adapt": "not measured: it adapts a finished model at one site, and is no federation",
        "krum": "not measured: it needs five sites, and these lists have four",
    }
