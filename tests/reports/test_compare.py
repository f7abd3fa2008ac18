from __future__ import annotations

import pytest

from samfed_monai.errors import Refused
from samfed_monai.reports import comparison_table
from samfed_monai.reports.compare import Cell

from .runs import write_run


def test_rows_come_in_the_order_of_the_method_and_others_last(runs):
    assert [row.variant for row in comparison_table(runs).rows] == ["dp_only", "teacher", "samfed", "oracle", "mine"]


def test_means_spreads_and_the_worst_site(runs):
    row = comparison_table(runs).row("samfed")
    assert row.seeds == [0, 1, 2]
    assert row.cells["dice"].mean == pytest.approx(0.86)
    assert row.cells["dice"].spread == pytest.approx(0.02)  # sample deviation of 0.84, 0.86, 0.88
    assert row.cells["site:a"].mean == pytest.approx(0.88)
    assert row.cells["worst"].mean == pytest.approx(0.84)
    assert row.cells["last"].mean == pytest.approx(0.81)
    assert row.cells["hd95"].mean == 10.0


def test_the_difference_is_paired_by_seed(runs):
    table = comparison_table(runs)
    assert table.row("samfed").cells["difference"].by_seed == pytest.approx({0: 0.04, 1: 0.06, 2: 0.08})
    assert table.difference("samfed", "mine").spread == pytest.approx(0, abs=1e-12)
    assert table.difference("samfed", "mine").mean == pytest.approx(0.06)
    assert table.difference("samfed", "nowhere").n == 0
    assert "difference" not in table.row("dp_only").cells


def test_the_share_of_the_gap_closed(runs):
    table = comparison_table(runs)
    gaps = {row.variant: row.gap for row in table.rows}
    assert gaps == pytest.approx({"dp_only": 0, "teacher": 0.5, "samfed": 0.6, "oracle": 1, "mine": 0}, abs=1e-9)
    assert table.notes == []


def test_the_teacher_row_is_sam_feds(runs):
    row = comparison_table(runs).row("teacher")
    assert row.cells["dice"].mean == pytest.approx(0.85)
    assert row.cells["worst"].mean == pytest.approx(0.85)
    assert row.cells["last"].mean is None


def test_without_floor_or_ceiling_there_is_no_share(runs):
    table = comparison_table([run for run in runs if "oracle" not in run.name])
    assert table.row("samfed").gap is None
    assert "There is no oracle row, so the share of the gap closed cannot be given." in table.notes


def test_an_oracle_that_does_not_lead_closes_nothing(tmp_path):
    runs = [write_run(tmp_path / v, v, 0, dice) for v, dice in {"dp_only": 0.8, "oracle": 0.8, "samfed": 0.9}.items()]
    table = comparison_table(runs)
    assert table.row("samfed").gap is None
    assert "oracle does not lead dp_only: the share of the gap closed is not defined." in table.notes
    assert "Fewer than three seeds: the spread is not to be relied on." in table.notes


def test_seeds_that_only_one_row_has_are_told_and_left_out_of_differences(runs, tmp_path):
    extra = write_run(tmp_path / "extra", "samfed", 9, 0.2)
    table = comparison_table([*runs, extra])
    assert table.row("samfed").gap == pytest.approx(0.6)
    assert list(table.row("samfed").cells["difference"].by_seed) == [0, 1, 2]
    assert "Rows have different seeds (dp_only: 0, 1, 2; " in table.notes[0]


def test_runs_of_unlike_length_are_told(tmp_path):
    runs = [write_run(tmp_path / v, v, 0, 0.8, rounds=r) for v, r in {"samfed": 5, "oracle": 9}.items()]
    assert "Runs have different numbers of rounds (samfed: 5; oracle: 9)." in comparison_table(runs).notes


def test_what_cannot_be_compared_is_refused_all_at_once(runs, tmp_path):
    again = write_run(tmp_path / "again", "samfed", 0, 0.8)
    other = write_run(tmp_path / "other", "no_sam", 0, 0.8, datalist="e" * 64)
    with pytest.raises(Refused) as refused:
        comparison_table([*runs, again, other, tmp_path / "nothing"])
    text = str(refused.value)
    assert "refused: 3 problems" in text
    assert "nothing: expected a finished run folder, found no results.json" in text
    assert "again: expected each variant and seed once, found samfed with seed 0" in text
    assert f"other -> data list: expected {'d' * 64}" in text
    assert "compare runs of one data list" in text


def test_no_runs_are_refused():
    with pytest.raises(Refused, match="runs: expected at least one finished run, found none"):
        comparison_table([])


def test_results_files_serve_as_well_as_folders(runs):
    assert comparison_table([run / "results.json" for run in runs]) == comparison_table(runs)


def test_one_seed_has_no_spread():
    assert Cell({0: 0.5}).spread is None
    assert Cell().mean is None
