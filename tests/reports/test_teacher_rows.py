from __future__ import annotations

import pytest

from samfed_monai.reports import comparison_table
from samfed_monai.reports.compare import adaptation_notes, teacher_alone
from samfed_monai.reports.run_data import RunData
from tests.reports.runs import summary, write_run


def with_unseen(folder, seed=0, **more):
    """A run whose teacher, 0.85 at its two sites, was scored at a hospital that took no part, too: 0.25."""
    path = write_run(folder, "samfed", seed, 0.8, unseen=0.4, **more)
    run = RunData.read(path)
    run.results["teacher"]["unseen"] = {"far": {"test": summary(0.25)}}
    return run


def as_it_once_was(run):
    """The same in results that did not tell unseen hospitals' teacher apart."""
    teacher = run.results["teacher"]
    teacher["sites"] |= teacher.pop("unseen")
    teacher["average"] = {"test": {**summary(0.65), "n": 3}}
    return run


@pytest.mark.parametrize("layout", [lambda run: run, as_it_once_was])
def test_a_teacher_counts_where_the_models_of_its_run_count(tmp_path, layout):
    alone = teacher_alone(layout(with_unseen(tmp_path)).results)
    assert (alone["average"]["test"]["dice"], alone["average"]["test"]["n"]) == (pytest.approx(0.85), 2)
    assert alone["worst"]["test"]["site"] == "a"
    assert alone["unseen"] == {"far": {"test": summary(0.25)}}


@pytest.mark.parametrize("layout", [lambda run: run, as_it_once_was])
def test_its_row_has_the_columns_of_unseen_hospitals(tmp_path, layout):
    table = comparison_table([layout(with_unseen(tmp_path))])
    cells = table.row("teacher").cells
    shown = {key: cells[key].mean for key in ("dice", "worst", "site:a", "unseen:far", "unseen")}
    assert shown == pytest.approx({"dice": 0.85, "worst": 0.85, "site:a": 0.85, "unseen:far": 0.25, "unseen": 0.25})
    assert table.row("samfed").cells["teacher"].mean == pytest.approx(0.85)


def test_a_run_without_a_teacher_or_without_its_scores_has_none(tmp_path):
    assert teacher_alone(RunData.read(write_run(tmp_path / "a", "dp_only", 0, 0.8)).results) is None
    told = RunData.read(write_run(tmp_path / "b", "dp_only", 0, 0.8, teacher={"adapt": "lora"}))
    assert teacher_alone(told.results) is None


def test_what_adaptation_brought_is_told_once(tmp_path):
    about = {"before": {"held_out": 0.1, "a": 0.25, "b": None}, "after": {"held_out": 0.5, "a": 0.75, "b": 0.5}}
    runs = [RunData.read(write_run(tmp_path / str(seed), "samfed", seed, 0.8, teacher=about)) for seed in (0, 1)]
    expected = "Dice of SAM before and after its adaptation, at the masks' own size: "
    assert adaptation_notes(runs) == [expected + "public images held out 0.100 to 0.500, a 0.250 to 0.750."]
    assert comparison_table(runs).notes[0] == adaptation_notes(runs)[0]
    alone = RunData.read(write_run(tmp_path / "e", "samfed", 0, 0.8, teacher={"after": about["after"]}))
    expected = "Dice of SAM after its adaptation, at the masks' own size: "
    assert adaptation_notes([alone]) == [expected + "public images held out 0.500, a 0.750, b 0.500."]
    silent = RunData.read(write_run(tmp_path / "f", "samfed", 0, 0.8, teacher={"score": False}))
    told = "The SAM teacher was not scored where `score` of `teacher.json` is false (samfed)."
    assert told in comparison_table([silent]).notes
    assert told not in comparison_table(runs).notes
    assert adaptation_notes([RunData.read(write_run(tmp_path / "d", "dp_only", 0, 0.8))]) == []
