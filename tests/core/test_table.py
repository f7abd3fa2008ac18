"""Tables as CSV: nothing that came from outside is a formula, and what is read is what was written."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samfed_monai.core.io import from_csv, to_csv


def test_rows_by_head_or_in_order_with_empty_cells_for_what_is_missing():
    rows = [{"b": 2, "a": "x", "c": "left out"}, ["y", None], {"a": "z"}]
    assert to_csv(["a", "b"], rows) == "a,b\nx,2\ny,\nz,\n"


@pytest.mark.parametrize("name", ["=1+1", "+A1", "-A1", "@SUM(A1)", "\tx", '=HYPERLINK("http://a","b")', "'=1"])
def test_fault_70_a_name_that_a_spreadsheet_would_take_for_a_formula_is_text(name):
    text = to_csv(["id", "dice"], [{"id": name, "dice": -0.5}])
    cells = list(csv.reader(io.StringIO(text, newline="")))[1]
    assert cells == ["'" + name, "-0.5"], "a number keeps its sign"
    assert from_csv(io.StringIO(text, newline=""))[0]["id"] == name


def test_harmless_names_stand_as_they_are():
    text = to_csv(["id"], [["Läsion 7, links"], ["'quoted'"], ["a=b"]])
    assert text == "id\n\"Läsion 7, links\"\n'quoted'\na=b\n"


@given(st.lists(st.tuples(st.text(), st.text()), max_size=5))
def test_what_is_written_is_read_back(rows):
    assert from_csv(io.StringIO(to_csv(["a", "b"], rows), newline="")) == [{"a": a, "b": b} for a, b in rows]
