"""A comparison as text, Markdown, JSON and figure, with its verdict from paired differences."""

import json

import pytest

from samfed_monai.core.io import read_json, write_json
from samfed_monai.reports import CAVEATS, comparison_table, write_comparison
from samfed_monai.reports.compare_forms import (
    ahead,
    blocks,
    format_cell,
    headlines,
    outcome_of,
    reading,
    standings,
    to_json,
    to_markdown,
    to_text,
    verdict,
    verdicts,
)
from samfed_monai.reports.rows import ABLATIONS, ONE_NETWORK, Cell, Group, Row
from samfed_monai.reports.run_data import RunData
from tests.reports.runs import NO_MASKS, heterogeneous_runs, write_disagreement, write_run
from tests.reports.test_html import Balance


def test_cells_are_formatted_with_spread():
    assert format_cell("dice", Cell({0: 0.8, 1: 0.9})) == "0.850 ± 0.071"
    assert format_cell("dice", Cell({0: 0.8})) == "0.800"
    assert format_cell("vs:dp_only", Cell({0: 0.04})) == "+0.040"
    assert format_cell("vs:dp_only", Cell({0: -0.04})) == "-0.040"
    assert format_cell("hd95", Cell({0: 9.04, 1: 9.06})) == "9.1 ± 0.0"
    assert format_cell("last", None) == "–"


def test_text_table_is_aligned(table):
    first, second, third, *sentences = to_text(table).rstrip("\n").split("\n\n")
    assert sentences == verdicts(table)
    for block in (first, second, third):
        assert len({len(line) for line in block.splitlines()}) == 1
    assert first.splitlines()[4].split("  ")[0] == "samfed"
    assert "0.860 ± 0.020" in first
    assert "60 %" in first


def test_markdown_has_all_tables_and_bold_sam_fed(table):
    lines = to_markdown(table).splitlines()
    own = ["3", "0.860 ± 0.020", "0.840 ± 0.020", "10.0 ± 0.0", "0.760 ± 0.020", "+0.060 ± 0.020", "60 %"]
    for line in (
        "| All test images | Seeds | Dice | Worst site | HD95 px | IoU | vs dp_only | Gap closed |",
        f"| SAM-Fed (`samfed`) | {' | '.join(f'**{cell}**' for cell in own)} |",
        "| Dice by site | a | b | Average | Worst site | Last model |",
        "| Public set only (`dp_only`) | +0.060 ± 0.020 | +0.060 ± 0.020 | +0.0 ± 0.0 | 3 of 3 | leads |",
        "| Oracle: sites have labels (`oracle`) | -0.040 ± 0.020 | -0.040 ± 0.020 | +0.0 ± 0.0 | 0 of 3 | trails |",
    ):
        assert line in lines
    assert any(line.startswith("| `mine` | 3 | 0.800 ± 0.020 |") for line in lines)


def test_costs_come_from_run_with_most_networks(tmp_path):
    """Times of two runs of one network differ by what else the machine did: they are in no table together."""
    runs = []
    for variant, milliseconds in (("no_sam", 130.0), ("samfed", 100.0)):
        run = RunData.read(write_run(tmp_path / variant, variant, 1, 0.8, teacher={"parameters": 9_800_000}))
        large = {"parameters": 5_200_000, "milliseconds": milliseconds, "memory_bytes": 34.7e6}
        run.results["costs"] = {"small": {"parameters": 750_000, "milliseconds": 30.0}, "large": large}
        runs.append(run)
    runs[0].results["teacher"]["milliseconds"] = 50.0  # of an older run: measured an hour before its networks
    runs[1].results["costs"]["teacher"] = {"parameters": 9_800_000, "milliseconds": 400.0}
    table = comparison_table(runs)
    *_, costs = to_markdown(table).split("\n\n| ")
    assert costs.split("\n\n")[0].splitlines() == [
        "What an image costs (samfed, seed 1) | M parameters | ms an image | MB an image |",
        "| --- | ---: | ---: | ---: |",
        "| `small` | 0.75 | 30 | – |",
        "| `large` | 5.20 | 100 | 35 |",
        "| SAM teacher with all its views (`teacher`) | 9.80 | 400 | – |",
    ]
    whole = blocks(table)[0]
    assert (whole.heads[-1], whole.rows["samfed"][-1]) == ("M parameters", "5.20")
    assert to_json(table)["costs"]["run"] == "samfed, seed 1"
    assert "of networks that one run measured one after the other" in " ".join(reading([table]))


def test_json_has_every_seed_and_reading_has_three_lines(table):
    content = json.loads(json.dumps(to_json(table)))
    row = next(row for row in content["rows"] if row["row"] == "samfed")
    assert row["cells"]["dice"]["by_seed"] == pytest.approx({"0": 0.84, "1": 0.86, "2": 0.88})
    assert content["datalist"] == "d" * 64
    assert len(reading([table])) == 3
    assert not any("What an image costs" in line for line in reading([table])), "no run measured two networks"


def test_groups_are_named_if_there_are_several(runs, tmp_path):
    table = comparison_table([*runs, *heterogeneous_runs(tmp_path / "h")])
    found = {block.title: block for block in blocks(table)}
    titles = ("all test images", "Dice by site", "SAM-Fed minus the row")
    assert list(found) == [f"{mode}: {title}" for mode in ("Homogeneous", "Heterogeneous") for title in titles]
    whole, by_site, against = (found[f"Heterogeneous: {title}"] for title in titles)
    assert whole.heads[5:] == ["vs dp_only", "vs hssf", "vs local_only", "Gap closed", "MB a round"]
    assert whole.rows["heterogeneous"][5:] == ["+0.140 ± 0.028", "+0.040 ± 0.014", "+0.090 ± 0.028", "–", "1.50 ± 0.00"]
    assert whole.strong == {"heterogeneous"}
    assert by_site.heads == ["a", "b", "Average", "Worst site", "far (unseen)", "Last model"]
    assert by_site.rows["hssf"][4] == "0.630 ± 0.014"
    homogeneous = found["Homogeneous: SAM-Fed minus the row"]
    assert against.heads == ["Dice", "Worst site", "HD95 px", "All unseen", "Seeds ahead", "SAM-Fed"]
    assert homogeneous.heads == against.heads
    assert (homogeneous.rows["oracle"][3], against.rows["hssf"][3]) == ("–", "+0.040 ± 0.014")
    assert to_json(table)["rows"][-1]["group"] == "Heterogeneous"


def test_rows_with_own_labels_are_compared_with_fedsam(tmp_path):
    runs = [write_run(tmp_path / name, name, 0, dice) for name, dice in (("fedsam", 0.7), ("pfedsam", 0.8))]
    table = comparison_table(runs)
    whole, _, against = blocks(table)
    assert whole.heads == ["Seeds", "Dice", "Worst site", "HD95 px", "IoU", "vs fedsam"]
    assert against.title == "pFedSAM in one stage minus the row"
    assert against.rows == {"fedsam": ["+0.100", "+0.100", "+0.0", "1 of 1", "one seed"]}
    assert not [note for note in table.notes if "gap" in note]


def test_comparison_is_written_in_every_form(runs, tmp_path):
    path = write_comparison(tmp_path / "C", runs, command="samfed compare B", title="Skin")
    names = {file.name for file in path.parent.iterdir()}
    assert names == {"comparison.html", "comparison.json", "comparison.md", "figures"}
    assert read_json(path.parent / "comparison.json")["command"] == "samfed compare B"
    markdown = (path.parent / "comparison.md").read_text(encoding="utf-8")
    assert markdown.startswith("# Skin\n\n```\nsamfed compare B\n```\n")
    page = path.read_text(encoding="utf-8")
    command = "<span>samfed</span> <span>compare</span> <span>B</span>"
    for text in ("<h1>Skin</h1>", command, *CAVEATS, "+0.060", "60 %", "d" * 64):
        assert text in page
    assert Balance(page).open == []


def test_headlines_report_difference_and_gap(table, tmp_path):
    found = {what: (number, small) for what, number, small in headlines(table)}
    assert found["Dice, SAM-Fed"] == ("0.860 ± 0.020", "3 seeds")
    assert found["Dice over public set"] == ("+0.060 ± 0.020", "paired by seed")
    assert found["Gap closed"][0] == "60 %"
    assert "Dice over no SAM" not in found
    assert headlines(comparison_table([write_run(tmp_path / "o", "oracle", 0, 0.9)])) == [], "without SAM-Fed"


def test_reading_states_score_convention(tmp_path):
    pooled = write_run(tmp_path / "p", "samfed", 0, 0.8, convention={"hd95": "pooled", "empty": "skipped"})
    plain = write_run(tmp_path / "q", "no_sam", 0, 0.8)
    assert "both directions pooled (MedPy)" in reading([comparison_table([pooled])])[0]
    assert "HD95 is not computed alike in all rows" in reading([comparison_table([pooled, plain])])[0]


def groups_of(folder, **dices):
    """Groups of runs with these Dice, one a seed, by variant."""
    return comparison_table(
        write_run(folder / f"{variant}-{seed}", variant, seed, dice)
        for variant, found in dices.items()
        for seed, dice in enumerate(found)
    ).groups


@pytest.mark.parametrize(
    ("differences", "word"),
    [
        ([0.02, 0.04, 0.06], "leads"),  # 0.04 ± 0.02
        ([-0.02, 0.02, 0.06], "within the spread"),  # 0.02 ± 0.04
        ([-0.02, -0.04, -0.06], "trails"),
        ([0.0, 0.0], "within the spread"),
        ([0.5], "one seed"),
        ([], "no seed in common"),
    ],
)
def test_difference_is_judged_by_spread(differences, word):
    assert outcome_of(Cell(dict(enumerate(differences)))) == word


def test_verdict_is_against_strongest_other_method(tmp_path):
    ablation = sorted(ABLATIONS)[0]
    others = {"dp_only": [0.70] * 3, "oracle": [0.95] * 3, ablation: [0.90] * 3}
    (group,) = groups_of(tmp_path, samfed=[0.84, 0.86, 0.88], no_sam=[0.80, 0.83, 0.85], **others)
    assert verdict(group) == (
        "SAM-Fed leads, by more than the spread: Dice +0.033 ± 0.006 against the strongest other row, "
        "Federated, no SAM (`no_sam`); ahead in 3 of 3 seeds. At the worst site: +0.033 ± 0.006, it leads."
    )
    found = {row.name: (ahead(cells["dice"]), outcome_of(cells["dice"])) for row, cells in standings(group)}
    assert found.items() >= {"oracle": (0, "trails"), ablation: (0, "trails"), "dp_only": (3, "leads")}.items()


def test_verdict_includes_unseen_hospitals(tmp_path):
    folders = [
        write_run(tmp_path / f"{variant}-{seed}", variant, seed, dice, unseen=unseen)
        for variant, dice, found in (("samfed", 0.8, [0.70, 0.72]), ("dp_only", 0.7, [0.60, 0.64]))
        for seed, unseen in enumerate(found)
    ]
    (group,) = comparison_table(folders).groups
    assert standings(group)[0][1]["unseen"].by_seed == pytest.approx({0: 0.10, 1: 0.08})
    assert str(verdict(group)).endswith("On hospitals that took no part: +0.090 ± 0.014, it leads.")


def test_verdict_judges_worst_site_separately():
    cells = {
        "samfed": {"dice": Cell({0: 0.80, 1: 0.80}), "worst": Cell({0: 0.70, 1: 0.60})},
        "no_sam": {"dice": Cell({0: 0.75, 1: 0.77}), "worst": Cell({0: 0.60, 1: 0.68})},
    }
    rows = [Row(name, [0, 1], found, variant=name, title=name) for name, found in cells.items()]
    text = str(verdict(Group(ONE_NETWORK, "", rows)))
    assert text.startswith("SAM-Fed leads, by more than the spread: Dice +0.040 ± 0.014")
    assert text.endswith("ahead in 2 of 2 seeds. At the worst site: +0.010 ± 0.127, within the spread.")


def test_verdict_with_own_labels_is_about_pfedsam(tmp_path):
    dices = {"pfedsam": [0.80, 0.82], "fedsam": [0.77, 0.78], "local_sam": [0.70, 0.71], "samfed": [0.60, 0.60]}
    unlabelled, labelled = groups_of(tmp_path, **dices)
    assert (unlabelled.label, labelled.label) == ("Homogeneous", "Own labels")
    assert verdict(unlabelled) is None
    assert str(verdict(labelled)).startswith(
        "pFedSAM in one stage leads, by more than the spread: Dice +0.035 ± 0.007 against the strongest other row, "
        "FedSAM (`fedsam`)"
    )
    assert labelled.hero.cells["vs:local_sam"].by_seed == pytest.approx({0: 0.10, 1: 0.11})


@pytest.mark.parametrize(
    ("dices", "text"),
    [
        (
            {"samfed": [0.80, 0.80, 0.80], "no_sam": [0.78, 0.77, 0.76], "dp_only": [0.79, 0.79, 0.70]},
            "ahead in 3 of 3 seeds. Within the spread of: Public set only.",
        ),
        (
            {"samfed": [0.85, 0.85], "no_sam": [0.80, 0.90]},
            "SAM-Fed neither leads nor trails beyond the spread: Dice +0.000 ± 0.071 against",
        ),
        (
            {"samfed": [0.85, 0.85], "no_sam": [0.94, 0.96]},
            "SAM-Fed does not lead: Dice -0.100 ± 0.014 against the strongest other row, Federated, no SAM (`no_sam`)",
        ),
        ({"samfed": [0.85], "no_sam": [0.80]}, "One seed: SAM-Fed's Dice is +0.050 against the strongest other row"),
        ({"samfed": [0.85, 0.85], "oracle": [0.9, 0.9]}, "None"),
        ({"no_sam": [0.85, 0.85]}, "None"),
    ],
    ids=["a_row_that_scatters", "level", "against_sam_fed", "one_seed", "no_rival", "no_sam_fed"],
)
def test_verdict_states_other_outcomes(tmp_path, dices, text):
    (group,) = groups_of(tmp_path, **dices)
    assert text in str(verdict(group))


def run_without_masks(folder, dices):
    """A run with sites without masks, and the table of Dice between student and teacher."""
    results = read_json(write_run(folder, "samfed", 0, 0.8) / "results.json")
    for level in (results, results["models"]["best"], results["models"]["last"]):
        level |= {"sites": {"a": NO_MASKS, "b": NO_MASKS}, "average": NO_MASKS, "worst": dict.fromkeys(NO_MASKS)}
    write_json(folder / "results.json", {**results, "teacher": None})
    for site, found in dices.items():
        write_disagreement(folder, site, *(f"{i},0{i},{dice},," for i, dice in enumerate(found)))
    return folder


def test_runs_without_masks_are_compared_by_disagreement(tmp_path):
    runs = [
        run_without_masks(tmp_path / "first", {"a": [0.5, 0.7], "b": [0.9]}),
        run_without_masks(tmp_path / "other", {"a": [0.2, 0.2], "b": [0.4]}),
    ]
    table = comparison_table(runs)
    text = to_text(table)
    assert "No site reported a test score, so no row can be called better" in text
    assert not [word for word in ("HD95", "Gap closed", "no seed in common", "dp_only", "–") if word in text]
    between = next(block for block in blocks(table) if "between them" in block.title)
    assert between.heads == ["a", "b", "All of them"]
    assert between.rows == {"first": ["0.600", "0.900", "0.700"], "other": ["0.200", "0.400", "0.267"]}
    assert [row.seeds for row in table.rows] == [[0], [0]]
    assert "Without test scores" in write_comparison(tmp_path / "both", runs).read_text(encoding="utf-8")
    assert not (tmp_path / "both" / "figures").exists()


def test_disagreement_is_shown_beside_scores(runs):
    write_disagreement(runs[0], "a", "0,00,0.2,,")
    titles = [block.title for block in blocks(comparison_table(runs))]
    assert "Student and teacher, Dice between them" in titles
    assert "All test images" in titles
