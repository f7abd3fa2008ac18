"""Comparison of rows: means and spreads over seeds, notes, and rows of teachers."""

import pytest

from samfed_monai.core.errors import Refused
from samfed_monai.core.io import read_json, write_json
from samfed_monai.reports import comparison_table
from samfed_monai.reports.rows import Cell
from samfed_monai.reports.run_data import RunData, teacher_alone
from tests.reports.runs import MIXED, heterogeneous_runs, summary, write_row, write_run


def row_of(table, name):
    return next(row for row in table.rows if row.name == name)


def difference(table, name, other):
    return row_of(table, name).cells["dice"].minus(row_of(table, other).cells["dice"])


def test_rows_are_ordered_and_have_share_of_gap(table):
    gaps = {row.name: row.gap for row in table.rows}
    assert list(gaps) == ["dp_only", "teacher", "samfed", "oracle", "mine"], "unknown ones last"
    assert gaps == pytest.approx({"dp_only": 0, "teacher": 0.5, "samfed": 0.6, "oracle": 1, "mine": 0}, abs=1e-9)
    assert table.notes == []


def test_cells_have_means_and_worst_site(table):
    own = {"dice": 0.86, "site:a": 0.88, "worst": 0.84, "last": 0.81, "hd95": 10.0, "teacher": 0.85, "vs:dp_only": 0.06}
    for row, means in (("samfed", own), ("teacher", {"dice": 0.85, "worst": 0.85, "last": None})):  # that of SAM-Fed
        assert {key: row_of(table, row).cells[key].mean for key in means} == pytest.approx(means)


def test_spread_and_paired_differences_are_over_seeds(table):
    own = row_of(table, "samfed")
    assert own.seeds == [0, 1, 2]
    assert own.cells["dice"].spread == pytest.approx(0.02)  # sample deviation of 0.84, 0.86, 0.88
    assert own.cells["vs:dp_only"].by_seed == pytest.approx({0: 0.04, 1: 0.06, 2: 0.08})
    assert difference(table, "samfed", "mine").spread == pytest.approx(0, abs=1e-12)
    assert difference(table, "samfed", "mine").mean == pytest.approx(0.06)
    assert "vs:dp_only" not in row_of(table, "dp_only").cells
    assert Cell({0: 0.5}).spread is None
    assert Cell().mean is None


def test_gap_is_undefined_without_valid_floor_and_ceiling(runs, tmp_path):
    table = comparison_table([run for run in runs if "oracle" not in run.name])
    assert row_of(table, "samfed").gap is None
    assert "There is no oracle row, so the share of the gap closed cannot be computed." in table.notes
    dices = {"dp_only": 0.8, "oracle": 0.8, "samfed": 0.9}
    table = comparison_table(write_run(tmp_path / variant, variant, 0, dice) for variant, dice in dices.items())
    assert row_of(table, "samfed").gap is None
    assert "oracle does not lead dp_only: the share of the gap closed is undefined." in table.notes
    assert "Fewer than three seeds: the spread is not reliable." in table.notes


def test_differing_seeds_rounds_and_images_are_noted(runs, tmp_path):
    short = read_json(runs[0] / "results.json")
    short["average"]["test"]["n"] = 1
    short["models"]["last"]["average"]["validation"]["dice"] = 0.5
    write_json(runs[0] / "results.json", short)
    table = comparison_table([*runs, write_run(tmp_path / "extra", "samfed", 9, 0.2)])
    assert row_of(table, "samfed").gap == pytest.approx(0.6)
    assert list(row_of(table, "samfed").cells["vs:dp_only"].by_seed) == [0, 1, 2]
    assert any("Rows have different seeds (dp_only: 0, 1, 2; " in note for note in table.notes)
    (note,) = [note for note in table.notes if "fewer test images" in note]
    assert "seed 0: 1 of 2): a site gave no scores there" in note
    (note,) = [note for note in table.notes if note.startswith("Training made some networks worse after the round")]
    assert note.endswith(
        f"best and last: {short['variant']}, seed 0: {short['average']['validation']['dice']:.3f}, then 0.500)."
    )
    other = [write_run(tmp_path / name, name, 0, 0.8, rounds=n) for name, n in {"samfed": 5, "oracle": 9}.items()]
    assert "Runs have different numbers of rounds (samfed: 5; oracle: 9)." in comparison_table(other).notes


def test_unseen_average_needs_all_unseen_hospitals(tmp_path):
    runs = [RunData.read(write_run(tmp_path / str(seed), "samfed", seed, 0.8, unseen=0.4)) for seed in range(3)]
    for run, split in zip(runs[1:], ("validation", "test"), strict=True):
        run.results["unseen"]["hard"] = {split: summary(0.6)}
    table = comparison_table([*runs, write_run(tmp_path / "alone", "local_only", 0, 0.7)])  # it has no model for them
    cells = row_of(table, "samfed").cells
    assert (table.unseen, cells["unseen:hard"].by_seed) == (["far", "hard"], {2: 0.6})
    assert cells["unseen"].by_seed == pytest.approx({2: 0.5})
    (note,) = [note for note in table.notes if "images of hospitals that took no part" in note]
    assert "(samfed, seed 0: 1 of 2; samfed, seed 1: 1 of 2): a site gave no scores there, so their average" in note


def test_incomparable_runs_are_refused_together(runs, tmp_path):
    other = write_run(tmp_path / "other", "no_sam", 0, 0.8, datalist="e" * 64)
    with pytest.raises(Refused) as refused:
        comparison_table([*runs, runs[0], other, tmp_path / "nothing"])
    text = str(refused.value)
    assert "refused: 3 problems" in text
    assert "nothing: expected a finished run folder, found no results.json" in text
    assert f"{runs[0]}: expected each run once, found this run twice; remove one" in text
    assert f"other -> data list: expected {'d' * 64}" in text
    assert "compare runs with the same data list" in text
    with pytest.raises(Refused, match="runs: expected at least one finished run, found none"):
        comparison_table([])


def test_runs_with_same_row_and_seed_are_named_by_folder(tmp_path):
    def run(folder, seed, dice, **client):
        path = write_run(tmp_path / folder, "samfed", seed, dice)
        write_json(path / "run.json", {"config": {"client": {"learning_rate": 0.001, **client}}})
        return path

    plain = [run("plain/0", 0, 0.8), run("plain/1", 1, 0.82)]
    other = [run("slow", 0, 0.7, learning_rate=1e-4, terms={"sam_kd": {"weight": 0}}), run("same", 0, 0.81)]
    table = comparison_table([*plain, *other])
    rows = [row for row in table.rows if row.variant == "samfed"]
    assert [(row.name, row.seeds, row.title) for row in rows] == [
        ("plain/0", [0, 1], "SAM-Fed, plain/0"),
        ("slow", [0], "SAM-Fed, slow"),
        ("same", [0], "SAM-Fed, same"),
    ]
    unlike = "unlike plain/0: learning_rate 0.0001 instead of 0.001, terms#sam_kd#weight 0 instead of null"
    assert [row.note for row in rows] == ["", unlike, "the options of plain/0"]
    assert difference(table, "slow", "plain/0").by_seed == pytest.approx({0: -0.1})
    assert [row.name for row in comparison_table(plain).rows if row.variant == "samfed"] == ["samfed"]
    alike = [run(f"{name}/run", 0, 0.8) for name in "ab"]  # distinct by the folders above them
    assert {row.name for row in comparison_table(alike).rows if row.variant == "samfed"} == {"a/run", "b/run"}
    others = [write_run(tmp_path / "y" / name, "no_sam", 0, 0.6) for name in "ab"]
    alike = [run("x/no_sam", 0, 0.8), run("x/b", 0, 0.81), *others]
    dices = {row.name: row.cells["dice"].mean for row in comparison_table(alike).rows}
    assert dices == pytest.approx({"a": 0.6, "b (no_sam)": 0.6, "teacher": 0.85, "no_sam (samfed)": 0.8, "b": 0.81})
    mixed = [run("m/0", 0, 0.8, image_size=448), run("m/1", 1, 0.8, image_size=128)]
    without = write_run(tmp_path / "m/2", "samfed", 2, 0.8)  # its options
    assert comparison_table([*mixed, without]).notes[:2] == [
        "Runs have different image sizes (samfed: 128, 448): their HD95, in pixels, cannot be compared.",
        "Seeds of one row were run with different settings or bundles (samfed): its mean and spread cover both.",
    ]
    assert not any("settings" in note for note in comparison_table([mixed[1], without]).notes)


def test_results_files_and_folders_are_equivalent(runs):
    assert comparison_table([run / "results.json" for run in runs[:2]]) == comparison_table(runs[:2])


def test_rows_of_different_modes_are_grouped(runs, tmp_path):
    table = comparison_table([*runs, *heterogeneous_runs(tmp_path / "h")])
    assert [(group.label, [row.name for row in group.rows]) for group in table.groups] == [
        ("Homogeneous", ["dp_only", "teacher", "samfed", "oracle", "mine"]),
        ("Heterogeneous", ["dp_mixed", "local_only", "hssf", "heterogeneous"]),
    ]
    own = row_of(table, "heterogeneous")
    assert own.cells["vs:hssf"].by_seed == pytest.approx({0: 0.03, 1: 0.05})
    assert own.cells["vs:local_only"].mean == pytest.approx(0.09)
    assert own.cells["vs:dp_only"].mean == pytest.approx(0.14)  # of dp_mixed, the floor of the same networks
    assert table.unseen == ["far"]
    assert own.cells["unseen:far"].by_seed == own.cells["unseen"].by_seed == pytest.approx({0: 0.65, 1: 0.69})
    assert own.cells["traffic"].mean == pytest.approx(1.5)  # 0.5 MB up and 1 MB down
    assert row_of(table, "local_only").cells["traffic"].mean == 0
    assert own.gap is None
    assert row_of(table, "samfed").gap == pytest.approx(0.6)
    assert "Heterogeneous: There is no oracle row, so the share of the gap closed cannot be computed." in table.notes


def test_setting_has_own_floor_and_ceiling(runs, tmp_path):
    pretrained = [
        write_row(tmp_path / f"{variant}-p", f"{variant}_p", variant, 0, dice, setting="ImageNet encoder")
        for variant, dice in {"dp_only": 0.7, "samfed": 0.8, "oracle": 0.9}.items()
    ]
    table = comparison_table([*runs, *pretrained])
    assert [group.label for group in table.groups] == ["Homogeneous", "ImageNet encoder, homogeneous"]
    assert row_of(table, "samfed_p").gap == pytest.approx(0.5)
    assert row_of(table, "samfed").gap == pytest.approx(0.6)


def test_row_name_title_and_note_come_from_comparison(tmp_path):
    folders = [
        write_row(tmp_path / name, name, "samfed", 0, 0.8, place=place, title=title, note="why")
        for place, (name, title) in enumerate({"tau_9": "", "tau_10": "Threshold 0.10"}.items())
    ]
    table = comparison_table(folders)
    found = [(row.name, row.variant, row.title, row.note) for row in table.rows if row.name != "teacher"]
    assert found == [("tau_9", "samfed", "tau_9", "why"), ("tau_10", "samfed", "Threshold 0.10", "why")]


def test_different_score_conventions_are_noted(tmp_path):
    pooled = {"hd95": "pooled", "empty": "skipped"}
    plain = write_run(tmp_path / "a", "samfed", 0, 0.8)
    other = write_run(tmp_path / "b", "no_sam", 0, 0.8, convention=pooled)
    table = comparison_table([plain, other])
    assert table.convention is None
    expected = "samfed: max of directed / diagonal; no_sam: pooled / skipped): their HD95 cannot be compared."
    assert any(expected in note for note in table.notes)
    assert comparison_table([other]).convention == pooled


def test_row_with_ceiling_role_defines_gap(tmp_path):
    played = {"floor": {"as": "dp_only"}, "ceiling": {"as": "oracle"}}
    folders = [
        write_row(tmp_path / name, name, variant, 0, dice, networks=MIXED, **played.get(name, {}))
        for name, variant, dice in (
            ("floor", "local_only", 0.5),
            ("heterogeneous", "heterogeneous", 0.6),
            ("ceiling", "heterogeneous", 0.7),
        )
    ]
    (group,) = comparison_table(folders).groups
    assert [row.name for row in group.rows] == ["floor", "heterogeneous", "ceiling"]
    assert [row.gap for row in group.rows] == pytest.approx([0, 0.5, 1])
    assert group.hero.name == "heterogeneous"


def test_rows_of_sweep_are_adjacent(tmp_path):
    rows = [("cold", 1, "Temperature"), ("average", 1, "Agreement rule"), ("hot", 2, "Temperature"), ("both", 2, "")]
    rows += [("intersection", 2, "Agreement rule"), ("samfed", 0, "")]
    runs = [write_row(tmp_path / name, name, "samfed", 0, 0.5, place=place, sweep=sweep) for name, place, sweep in rows]
    names = [row.name for row in comparison_table(runs).rows if row.variant == "samfed"]
    assert names == ["samfed", "both", "average", "intersection", "cold", "hot"]


def test_teacher_row_has_scores_of_all_and_unseen_sites(tmp_path):
    run = RunData.read(write_run(tmp_path, "samfed", 0, 0.8, unseen=0.4))
    run.results["teacher"]["unseen"] = {"far": {"test": summary(0.25)}}
    cells = row_of(comparison_table([run]), "teacher").cells
    means = {"dice": 0.85, "worst": 0.85, "site:a": 0.85, "unseen:far": 0.25, "unseen": 0.25}
    assert {key: cells[key].mean for key in means} == pytest.approx(means)
    alone = teacher_alone(run.results)
    assert (alone["average"]["test"]["n"], alone["worst"]["test"]["site"]) == (2, "a")
    assert alone["unseen"] == {"far": {"test": summary(0.25)}}


@pytest.mark.parametrize("about", [None, {"adapt": "lora"}])
def test_teacher_alone_is_none_without_teacher_scores(tmp_path, about):
    assert teacher_alone(RunData.read(write_run(tmp_path, "dp_only", 0, 0.8, teacher=about)).results) is None


def test_unscored_teacher_is_noted(tmp_path):
    silent = write_run(tmp_path / "f", "samfed", 0, 0.8, teacher={"score": False})
    note = "The SAM teacher was not scored where `score` of `teacher.json` is false (samfed)."
    assert comparison_table([silent]).notes[0] == note
