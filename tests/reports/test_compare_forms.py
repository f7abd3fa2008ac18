from __future__ import annotations

import csv
import io
import json

import pytest

from samfed_monai.core.io import read_json
from samfed_monai.reports import CAVEATS, comparison_table, write_comparison
from samfed_monai.reports.compare_forms import (
    blocks,
    headlines,
    spell,
    to_csv,
    to_json,
    to_markdown,
    to_page,
    to_text,
    verdicts,
)
from samfed_monai.reports.rows import Cell
from samfed_monai.reports.run_data import RunData

from .runs import heterogeneous_runs, write_run
from .test_html import Balance


@pytest.fixture
def table(runs):
    return comparison_table(runs)


def test_cells_are_spelt_with_their_spread():
    assert spell("dice", Cell({0: 0.8, 1: 0.9})) == "0.850 ± 0.071"
    assert spell("dice", Cell({0: 0.8})) == "0.800"
    assert spell("vs:dp_only", Cell({0: 0.04})) == "+0.040"
    assert spell("vs:dp_only", Cell({0: -0.04})) == "-0.040"
    assert spell("hd95", Cell({0: 9.04, 1: 9.06})) == "9.1 ± 0.0"
    assert spell("last", None) == "–"


def test_text_is_aligned(table):
    first, second, third, said = to_text(table).rstrip("\n").split("\n\n")
    assert said == verdicts(table)[0]
    for block in (first, second, third):
        assert len({len(line) for line in block.splitlines()}) == 1
    assert first.splitlines()[4].split("  ")[0] == "samfed"
    assert "0.860 ± 0.020" in first
    assert "60 %" in first


def test_markdown_has_both_blocks_and_bold_sam_fed(table):
    text = to_markdown(table)
    assert "| All test images | Seeds | Dice | Worst site | HD95 px | IoU | vs dp_only | Gap closed |" in text
    assert "| Dice by site | a | b | Average | Worst site | Last model |" in text
    whole = (
        "| SAM-Fed (`samfed`) | **3** | **0.860 ± 0.020** | **0.840 ± 0.020** | **10.0 ± 0.0** | **0.760 ± 0.020** |"
    )
    assert f"{whole} **+0.060 ± 0.020** | **60 %** |" in text
    assert "| `mine` | 3 | 0.800 ± 0.020 |" in text
    assert "| Public set only (`dp_only`) | +0.060 ± 0.020 | +0.060 ± 0.020 | +0.0 ± 0.0 | 3 of 3 | leads |" in text
    assert (
        "| Oracle: sites have labels (`oracle`) | -0.040 ± 0.020 | -0.040 ± 0.020 | +0.0 ± 0.0 | 0 of 3 | trails |"
        in text
    )


def test_what_an_image_costs_stands_beside_every_dice(tmp_path):
    runs = []
    for seed, milliseconds in ((0, 100.0), (1, 130.0)):
        run = RunData.read(write_run(tmp_path / str(seed), "samfed", seed, 0.8, teacher={"parameters": 9_800_000}))
        run.results["teacher"]["milliseconds"] = 4 * milliseconds
        run.results["costs"] = {"small": {"parameters": 750_000, "milliseconds": 30.0}}
        run.results["costs"]["large"] = {"parameters": 5_200_000, "milliseconds": milliseconds}
        runs.append(run)
    text = to_markdown(comparison_table(runs))
    lines = {line.split(" | ")[0]: line for line in reversed(text.splitlines()) if line.startswith("|")}
    assert "| M parameters | ms an image |" in lines["| All test images"]
    assert "| **5.20** | **115 ± 21** |" in lines["| SAM-Fed (`samfed`)"]
    assert "| 9.80 | 460 ± 85 |" in lines["| SAM teacher alone (`teacher`)"]


def test_csv_keeps_full_precision(table):
    rows = {row["row"]: row for row in csv.DictReader(io.StringIO(to_csv(table)))}
    assert float(rows["samfed"]["dice_mean"]) == table.row("samfed").cells["dice"].mean
    assert rows["dp_only"]["vs:dp_only_mean"] == ""
    assert rows["samfed"]["seeds"] == "0 1 2"
    assert float(rows["samfed"]["gap_closed"]) == pytest.approx(0.6)
    assert float(rows["samfed"]["site:a_spread"]) == pytest.approx(0.02)


def test_json_has_every_seed(table):
    content = json.loads(json.dumps(to_json(table)))
    row = next(row for row in content["rows"] if row["row"] == "samfed")
    assert row["cells"]["dice"]["by_seed"] == pytest.approx({"0": 0.84, "1": 0.86, "2": 0.88})
    assert content["datalist"] == "d" * 64


def test_groups_are_named_where_there_are_two(runs, tmp_path):
    table = comparison_table([*runs, *heterogeneous_runs(tmp_path / "h")])
    found = {block.title: block for block in blocks(table)}
    assert list(found) == [
        *("Homogeneous: all test images", "Homogeneous: Dice by site", "Homogeneous: SAM-Fed minus the row"),
        *("Heterogeneous: all test images", "Heterogeneous: Dice by site", "Heterogeneous: SAM-Fed minus the row"),
    ]
    whole = found["Heterogeneous: all test images"]
    assert whole.heads[5:] == ["vs dp_only", "vs hssf", "vs local_only", "Gap closed", "MB a round"]
    assert whole.rows["heterogeneous"][5:] == ["+0.140 ± 0.028", "+0.040 ± 0.014", "+0.090 ± 0.028", "–", "1.50 ± 0.00"]
    assert found["Heterogeneous: Dice by site"].heads == [
        "a",
        "b",
        "Average",
        "Worst site",
        "far (unseen)",
        "Last model",
    ]
    against = [found[f"{mode}: SAM-Fed minus the row"] for mode in ("Homogeneous", "Heterogeneous")]
    assert (
        against[0].heads
        == against[1].heads
        == ["Dice", "Worst site", "HD95 px", "All unseen", "Seeds ahead", "SAM-Fed"]
    )
    assert [block.rows[row][3] for block, row in zip(against, ("oracle", "hssf"), strict=True)] == [
        "–",
        "+0.040 ± 0.014",
    ]
    assert found["Heterogeneous: Dice by site"].rows["hssf"][4] == "0.630 ± 0.014"
    assert whole.strong == {"heterogeneous"}
    assert json.loads(json.dumps(to_json(table)))["rows"][-1]["group"] == "Heterogeneous"


def test_rows_with_own_labels_have_no_gap_and_are_held_against_fedsam(tmp_path):
    runs = [write_run(tmp_path / name, name, 0, dice) for name, dice in (("fedsam", 0.7), ("pfedsam_joint", 0.8))]
    table = comparison_table(runs)
    whole, _, against = blocks(table)
    assert whole.heads == ["Seeds", "Dice", "Worst site", "HD95 px", "IoU", "vs fedsam"]
    assert against.title == "pFedSAM in one stage minus the row"
    assert against.rows == {"fedsam": ["+0.100", "+0.100", "+0.0", "1 of 1", "one seed"]}
    assert not [note for note in table.notes if "gap" in note]


def test_it_writes_every_form(runs, tmp_path):
    path = write_comparison(tmp_path / "C", runs, command="samfed compare B", title="Skin")
    assert sorted(file.name for file in path.parent.iterdir()) == [
        "comparison.csv",
        "comparison.html",
        "comparison.json",
        "comparison.md",
        "figures",
    ]
    assert read_json(path.parent / "comparison.json")["command"] == "samfed compare B"
    page = path.read_text(encoding="utf-8")
    for text in ("<h1>Skin</h1>", "samfed compare B", *CAVEATS, "+0.060", "60 %", "d" * 64):
        assert text in page
    assert (
        (path.parent / "comparison.md").read_text(encoding="utf-8").startswith("# Skin\n\n```\nsamfed compare B\n```\n")
    )
    balance = Balance()
    balance.feed(page)
    assert balance.open == []


def test_its_page_is_the_same_bytes_every_time(table):
    made = [to_page(table, title="Skin", command="samfed compare B") for _ in range(2)]
    assert made[0] == made[1]
    for text in (
        "# Skin",
        "samfed compare B",
        f"- {CAVEATS[1]}",
        "- torch: 2.13.0",
        "- samfed: seeds 0, 1, 2",
    ):
        assert text in made[0].splitlines()
    assert f"- data list: `{'d' * 64}` (SHA-256)" in made[0]


def test_headlines_answer_the_question(table):
    found = {what: (number, small) for what, number, small in headlines(table)}
    assert found["Dice, SAM-Fed"] == ("0.860 ± 0.020", "3 seeds")
    assert found["Dice over public set"] == ("+0.060 ± 0.020", "paired by seed")
    assert found["Gap closed"][0] == "60 %"
    assert "Dice over no SAM" not in found


def test_a_comparison_without_sam_fed_has_no_headlines(tmp_path):
    assert headlines(comparison_table([write_run(tmp_path / "o", "oracle", 0, 0.9)])) == []


@pytest.mark.parametrize("figure", [None, "skin.png"])
def test_the_figure_is_optional(table, figure):
    assert ("![" in to_page(table, figure=figure)) == (figure is not None)


def test_the_convention_of_the_runs_is_told(tmp_path):
    pooled = write_run(tmp_path / "p", "samfed", 0, 0.8, convention={"hd95": "pooled", "empty": "skipped"})
    plain = write_run(tmp_path / "q", "no_sam", 0, 0.8)
    assert (
        "both directions pooled (MedPy), in pixels at the evaluation size; images with an empty mask are left out"
        in to_page(comparison_table([pooled]))
    )
    assert (
        "the larger of the two directed 95th percentiles (MONAI), in pixels at the evaluation size; an image with"
        in to_page(comparison_table([plain]))
    )
    assert "HD95 is not counted alike in all rows" in to_page(comparison_table([pooled, plain]))
