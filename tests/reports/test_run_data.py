"""One run folder, read and checked, with its table of rounds."""

from __future__ import annotations

import pytest

from samfed_monai.core.errors import Refused
from samfed_monai.core.io import write_json
from samfed_monai.reports import RunData
from samfed_monai.reports.run_data import RoundRow, read_federation, series


def test_it_reads_a_run(run_folder):
    run = RunData.read(run_folder)
    assert run.sites == ["Basel", "Lübeck", "Porto", "São Paulo"]
    assert run.seed == 0
    assert len(run.rounds) == 64
    assert run.setting("nothing") is None
    assert run.skipped == [{"round": 5, "site": "Porto", "reason": "layer4.1.conv2.weight: NaN or infinity"}]


def test_options_are_read_from_the_command(run_folder):
    run = RunData.read(run_folder)
    bare = RunData(
        run.folder, {**run.results, "command": "python -m monai.bundle run --datalist 'my list.json' --data_root=D"}
    )
    assert (bare.setting("datalist"), bare.setting("data_root")) == ("my list.json", "D")
    assert bare.setting("data") is None


@pytest.mark.parametrize(
    ("results", "own"),
    [
        ({"own_models": True, "exchange": "weights"}, True),
        ({"own_models": False, "exchange": "predictions"}, False),
        ({}, False),
    ],
)
def test_whose_models_a_run_ends_with(tmp_path, results, own):
    assert RunData(tmp_path, results).own_models is own


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


CSV = """round,site,status,reason,n,dice,term_supervised,term_reliability
1,b,ok,,10,0.8,0.2,0.7
0,b,skipped,NaN or infinity,,,,
0,a,ok,,20,0.5,nan,0.6
"""


@pytest.fixture
def rows(tmp_path):
    (tmp_path / "federation.csv").write_text(CSV)
    return read_federation(tmp_path / "federation.csv")


def test_rows_come_in_the_order_of_rounds(rows):
    assert [(row.round, row.site) for row in rows] == [(0, "a"), (0, "b"), (1, "b")]


def test_terms_lose_their_prefix_and_what_is_no_number_is_left_out(rows):
    assert rows[0] == RoundRow(0, "a", values={"n": 20.0, "dice": 0.5, "term_reliability": 0.6})
    assert rows[1] == RoundRow(0, "b", status="skipped", reason="NaN or infinity")


def test_series_leave_out_rounds_without_a_value(rows):
    assert series(rows, "dice") == {"a": [(0, 0.5)], "b": [(1, 0.8)]}
    assert series(rows, "term_supervised") == {"b": [(1, 0.2)]}
    assert series(rows, "term_agreement") == {}


def test_it_reads_what_the_controller_writes():
    from samfed_monai.federation.run_folder import COLUMNS

    assert {"round", "site", "status", "reason", "dice", "n"} <= set(COLUMNS)


def test_a_run_without_rounds_has_no_rows(tmp_path):
    assert read_federation(tmp_path / "federation.csv") == []
