"""Notes on the teachers and starts of runs of several machines."""

from __future__ import annotations

from samfed_monai.reports.run_data import RunData
from study.notes import adaptation_notes, start_notes, teacher_notes
from tests.reports.runs import write_run


def test_teachers_of_one_recipe_that_were_fitted_apart_are_told(tmp_path):
    def run(seed, sha256, **recipe):
        about = {"base": "vit_t", "adapt": "lora", "size": 512, "views": 4} | recipe
        hashes = {"datalist": "d" * 64, "teacher": sha256}
        return RunData.read(
            write_run(tmp_path / f"{sha256[0]}{seed}", "samfed", seed, 0.8, teacher=about, hashes=hashes)
        )

    runs = [run(0, "a" * 64), run(1, "a" * 64), run(2, "b" * 64), run(3, "c" * 64, views=1)]
    told = teacher_notes(runs)
    assert told == [
        "Runs have SAM teachers of one recipe (base vit_t, adapt lora, size 512, views 4) that were fitted apart "
        "(aaaaaaaa: samfed, seed 0, …; bbbbbbbb: samfed, seed 2, …): a part of what lies between them is the teachers'."
    ]
    assert teacher_notes([run(0, "a" * 64), run(1, "a" * 64)]) == []


def test_rows_without_sam_that_start_from_another_adapter_are_told(tmp_path):
    def run(row, seed, adapter, **hashes):
        hashes = {"datalist": "d" * 64, "adapter": adapter * 64, **hashes}
        return RunData.read(write_run(tmp_path / f"{row}{seed}{adapter}", row, seed, 0.8, hashes=hashes))

    guided = [run("samfed", seed, "a", teacher="c" * 64) for seed in (0, 1)]
    floor, oracle = [run("dp_only", seed, "a") for seed in (0, 1)], run("oracle", 0, "b")
    told = start_notes([*guided, *floor, oracle])
    assert told == [
        "Runs of seed 0 were given different adapters (aaaaaaaa: dp_only, samfed; bbbbbbbb: oracle), from whose trunk "
        "students start: a part of what lies between these rows is their start's."
    ]
    other = run("no_agreement", 0, "b", teacher="e" * 64)  # two teachers are told of already
    for runs in ([*guided, *floor], [*guided, other], [*guided, run("oracle", 2, "b")]):
        assert start_notes(runs) == []


def test_what_adaptation_brought_is_told_once(tmp_path):
    about = {"before": {"held_out": 0.1, "a": 0.25, "b": None}, "after": {"held_out": 0.5, "a": 0.75, "b": 0.5}}
    runs = [RunData.read(write_run(tmp_path / str(seed), "samfed", seed, 0.8, teacher=about)) for seed in (0, 1)]
    expected = "Dice of SAM before and after its adaptation, at the masks' own size: "
    assert adaptation_notes(runs) == [expected + "public images held out 0.100 to 0.500, a 0.250 to 0.750."]
    alone = RunData.read(write_run(tmp_path / "e", "samfed", 0, 0.8, teacher={"after": about["after"]}))
    expected = "Dice of SAM after its adaptation, at the masks' own size: "
    assert adaptation_notes([alone]) == [expected + "public images held out 0.500, a 0.750, b 0.500."]
    assert adaptation_notes([RunData.read(write_run(tmp_path / "d", "dp_only", 0, 0.8))]) == []
