from __future__ import annotations

import pytest

from samfed_monai.core.io import read_json
from samfed_monai.reports import CAVEATS, comparison_page, comparison_table, write_comparison
from samfed_monai.reports.compare_page import headlines, write_page
from samfed_monai.reports.sections import Section

from .runs import heterogeneous_runs, write_run
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


def test_published_rows_stand_in_a_table_of_their_own_with_their_mark(runs, tmp_path):
    page = comparison_page(runs, published="polyp")
    assert "*published (HSSF, Ma et al. 2024), other scale*: polyp." in page
    assert "| Heterogeneous | HSSF | 0.6665 | 54.0 | 0.6635 | 0.4273 | 0.7862 | 0.7282 |" in page
    assert "| Homogeneous | ELN | 0.4327 | – | – | – | – | – |" in page
    html = write_comparison(tmp_path / "C", runs, published="skin").read_text(encoding="utf-8")
    for text in ("0.7911", "34.2", "0.8340", "other scale", "IEEE Transactions on Medical Imaging, 2024"):
        assert text in html


def test_a_page_of_several_comparisons_has_their_commands_verdicts_and_figures(runs, tmp_path):
    sections = [
        Section("From scratch", comparison_table(runs), "samfed compare A"),
        Section("ImageNet encoder", comparison_table(heterogeneous_runs(tmp_path / "h")), "samfed compare B"),
    ]
    write_page(tmp_path / "polyp.md", sections, title="Polyps", command="make polyp", published="polyp")
    page = (tmp_path / "polyp.md").read_text(encoding="utf-8")
    order = (
        *(
            "# Polyps",
            "make polyp",
            "## From scratch",
            "samfed compare A",
            "- SAM-Fed leads, by more than",
            "polyp-from-",
        ),
        *("## ImageNet encoder", "samfed compare B", "(polyp-imagenet-encoder.png)", "## Published numbers"),
        *("## How to read", "## Caveats", "## Provenance", "### From scratch", "### ImageNet encoder"),
    )
    places = [page.index(text) for text in order]
    assert places == sorted(places)
    assert (tmp_path / "polyp-imagenet-encoder.png").read_bytes().startswith(b"\x89PNG")
    assert "- `hssf`: regularity condensation and fusion without SAM" in page
    write_page(tmp_path / "again.md", sections, title="Polyps", command="make polyp", published="polyp")
    assert (tmp_path / "again.md").read_text(encoding="utf-8") == page.replace("(polyp-", "(again-")


def test_the_convention_of_the_runs_is_told(tmp_path):
    pooled = write_run(tmp_path / "p", "samfed", 0, 0.8, convention={"hd95": "pooled", "empty": "skipped"})
    plain = write_run(tmp_path / "q", "no_sam", 0, 0.8)
    assert (
        "both directions pooled (MedPy), in pixels at the evaluation size; images with an empty mask are left out"
        in comparison_page([pooled])
    )
    assert (
        "the larger of the two directed 95th percentiles (MONAI), in pixels at the evaluation size; an image with"
        in comparison_page([plain])
    )
    assert "HD95 is not counted alike in all rows" in comparison_page([pooled, plain])
