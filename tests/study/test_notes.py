"""Notes on different teachers and starts of runs."""

from samfed_monai.reports.run_data import RunData
from study.notes import start_notes
from tests.reports.runs import write_run


def test_different_start_adapters_are_noted(tmp_path):
    def run(row, seed, adapter, **hashes):
        hashes = {"datalist": "d" * 64, "adapter": adapter * 64, **hashes}
        return RunData.read(write_run(tmp_path / f"{row}{seed}{adapter}", row, seed, 0.8, hashes=hashes))

    guided = [run("samfed", seed, "a", teacher="c" * 64) for seed in (0, 1)]
    floor, oracle = [run("dp_only", seed, "a") for seed in (0, 1)], run("oracle", 0, "b")
    assert start_notes([*guided, *floor, oracle]) == [
        "Runs of seed 0 were given different adapters (aaaaaaaa: dp_only, samfed; bbbbbbbb: oracle), from whose trunk "
        "students start: part of the difference between these rows is due to the start."
    ]
    other = run("no_agreement", 0, "b", teacher="e" * 64)  # two teachers are noted already
    for runs in ([*guided, *floor], [*guided, other], [*guided, run("oracle", 2, "b")]):
        assert start_notes(runs) == []
