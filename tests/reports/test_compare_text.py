from __future__ import annotations

import csv
import io
import json

import pytest

from samfed_monai.reports import comparison_table
from samfed_monai.reports.compare import Cell
from samfed_monai.reports.compare_text import spell, to_csv, to_json, to_markdown, to_text


@pytest.fixture
def table(runs):
    return comparison_table(runs)


def test_cells_are_spelt_with_their_spread():
    assert spell("dice", Cell({0: 0.8, 1: 0.9})) == "0.850 ± 0.071"
    assert spell("dice", Cell({0: 0.8})) == "0.800"
    assert spell("difference", Cell({0: 0.04})) == "+0.040"
    assert spell("difference", Cell({0: -0.04})) == "-0.040"
    assert spell("hd95", Cell({0: 9.04, 1: 9.06})) == "9.1 ± 0.0"
    assert spell("last", None) == "–"


def test_text_is_aligned(table):
    first, second = to_text(table).rstrip("\n").split("\n\n")
    for block in (first, second):
        assert len({len(line) for line in block.splitlines()}) == 1
    assert first.splitlines()[4].split("  ")[0] == "samfed"
    assert "0.860 ± 0.020" in first
    assert "60 %" in first


def test_markdown_has_both_blocks_and_bold_sam_fed(table):
    text = to_markdown(table)
    assert "| All test images | Seeds | Dice | vs dp_only | Gap closed | IoU | HD95 px |" in text
    assert "| Dice by site | a | b | Worst site | Last model |" in text
    assert "| SAM-Fed (`samfed`) | **3** | **0.860 ± 0.020** | **+0.060 ± 0.020** | **60 %** |" in text
    assert "| mine (`mine`) | 3 | 0.800 ± 0.020 |" in text


def test_csv_keeps_full_precision(table):
    rows = {row["variant"]: row for row in csv.DictReader(io.StringIO(to_csv(table)))}
    assert float(rows["samfed"]["dice_mean"]) == table.row("samfed").cells["dice"].mean
    assert rows["dp_only"]["difference_mean"] == ""
    assert rows["samfed"]["seeds"] == "0 1 2"
    assert float(rows["samfed"]["gap_closed"]) == pytest.approx(0.6)
    assert float(rows["samfed"]["site:a_spread"]) == pytest.approx(0.02)


def test_json_has_every_seed(table):
    content = json.loads(json.dumps(to_json(table)))
    row = next(row for row in content["rows"] if row["variant"] == "samfed")
    assert row["cells"]["dice"]["by_seed"] == pytest.approx({"0": 0.84, "1": 0.86, "2": 0.88})
    assert content["datalist"] == "d" * 64
