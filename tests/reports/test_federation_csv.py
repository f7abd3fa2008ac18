from __future__ import annotations

import pytest

from samfed_monai.reports.run_data import RoundRow, read_federation, series

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
    assert rows[0] == RoundRow(0, "a", values={"n": 20.0, "dice": 0.5}, terms={"reliability": 0.6})
    assert rows[1] == RoundRow(0, "b", status="skipped", reason="NaN or infinity")
    assert [row.skipped for row in rows] == [False, True, False]


def test_series_leave_out_rounds_without_a_value(rows):
    assert series(rows, "dice") == {"a": [(0, 0.5)], "b": [(1, 0.8)]}
    assert series(rows, "supervised") == {"b": [(1, 0.2)]}
    assert series(rows, "agreement") == {}


def test_it_reads_what_the_controller_writes():
    from samfed_monai.federation.run_folder import COLUMNS

    assert {"round", "site", "status", "reason", "dice", "n"} <= set(COLUMNS)


def test_a_run_without_rounds_has_no_rows(tmp_path):
    assert read_federation(tmp_path / "federation.csv") == []
