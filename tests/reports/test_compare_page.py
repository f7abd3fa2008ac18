from __future__ import annotations

import pytest

from samfed_monai.io import read_json
from samfed_monai.reports import CAVEATS, comparison_page, comparison_table, write_comparison
from samfed_monai.reports.compare_page import headlines

from .runs import write_run
from .test_html import Balance


def test_it_writes_every_form(runs, tmp_path):
    path = write_comparison(tmp_path / "C", runs, command="samfed compare B", caveats=["Small."], title="Skin")
    assert sorted(file.name for file in path.parent.iterdir()) == [
        "comparison.csv",
        "comparison.html",
        "comparison.json",
        "comparison.md",
        "figures",
    ]
    assert read_json(path.parent / "comparison.json")["command"] == "samfed compare B"
    page = path.read_text(encoding="utf-8")
    for text in ("<h1>Skin</h1>", "samfed compare B", "Small.", *CAVEATS, "+0.060", "60 %", "d" * 64):
        assert text in page
    balance = Balance()
    balance.feed(page)
    assert balance.open == []


def test_the_documentation_page_is_the_same_bytes_every_time(runs):
    made = [comparison_page(runs, title="Skin", command="samfed compare B", caveats=["Small."]) for _ in range(2)]
    assert made[0] == made[1]
    for text in (
        "# Skin",
        "samfed compare B",
        "- Small.",
        f"- {CAVEATS[1]}",
        "- torch: 2.13.0",
        "- samfed: seeds 0, 1, 2",
    ):
        assert text in made[0].splitlines()
    assert f"- data list: `{'d' * 64}` (SHA-256)" in made[0]


def test_headlines_answer_the_question(runs):
    found = {what: (number, small) for what, number, small in headlines(comparison_table(runs))}
    assert found["Dice, SAM-Fed"] == ("0.860 ± 0.020", "3 seeds")
    assert found["Dice over public set"] == ("+0.060 ± 0.020", "paired by seed")
    assert found["Gap closed"][0] == "60 %"
    assert "Dice over no SAM" not in found


def test_a_comparison_without_sam_fed_has_no_headlines(tmp_path):
    assert headlines(comparison_table([write_run(tmp_path / "o", "oracle", 0, 0.9)])) == []


@pytest.mark.parametrize("figure", [None, "skin.png"])
def test_the_figure_is_optional(runs, figure):
    assert ("![" in comparison_page(runs, figure=figure)) == (figure is not None)
