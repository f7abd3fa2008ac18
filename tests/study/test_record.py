"""Records of runs in one file give the same table as the run folders."""

import json
from dataclasses import replace

import pytest

from samfed_monai.core.errors import Refused
from samfed_monai.core.io import read_json, write_json
from samfed_monai.reports.compare import comparison_table
from study.__main__ import main
from study.page import read_sections
from study.record import add_to_record, read_record, runs_in
from tests.reports.runs import write_row, write_run


@pytest.fixture
def folders(tmp_path):
    return [
        write_run(tmp_path / "R" / variant / f"seed-{seed}", variant, seed, dice)
        for variant, seed, dice in (("samfed", 0, 0.8), ("samfed", 1, 0.7), ("dp_only", 0, 0.6), ("dp_only", 1, 0.65))
    ]


def test_record_gives_table_of_runs_without_machine_paths(tmp_path, folders):
    write_json(folders[0] / "compare.json", {"row": "mine", "variant": "samfed", "note": "n", "seal": {"files": {}}})
    add_to_record(tmp_path / "runs.jsonl", folders)
    recorded, made = comparison_table(read_record(tmp_path / "runs.jsonl")), comparison_table(sorted(folders))
    without = [replace(group, tests=[], untested=[]) for group in made.groups]
    assert recorded == replace(made, groups=without), "a record has no scores of single images"
    (section,) = read_sections([f"A={tmp_path / 'runs.jsonl'}"])
    assert [row.name for row in section.table.rows] == ["dp_only", "teacher", "samfed", "mine"]
    first = json.loads((tmp_path / "runs.jsonl").read_text(encoding="utf-8").splitlines()[2])
    assert first["about"] == {"row": "mine", "variant": "samfed", "note": "n"}
    assert first["results"]["command"] is None


def test_seeds_with_different_settings_are_noted(tmp_path, folders):
    def seal(folder, **asked):
        write_json(folder / "compare.json", {"row": "samfed", "seal": {"asked": asked, "configs": []}})

    seal(folders[0], seed="0", image_size="128")
    seal(folders[1], seed="1", image_size="128")
    record = tmp_path / "runs.jsonl"
    add_to_record(record, folders)
    assert not any("different settings" in note for note in comparison_table(read_record(record)).notes)
    seal(folders[1], seed="1", image_size="256")
    add_to_record(record, folders[1:2])
    expected = "Seeds of one row were run with different settings or bundles (samfed): its mean and spread cover both."
    assert expected in comparison_table(read_record(record)).notes


def test_same_row_and_seed_is_replaced_and_others_unchanged(tmp_path, folders):
    record = tmp_path / "runs.jsonl"
    add_to_record(record, folders)
    before = record.read_bytes()
    add_to_record(record, folders[1:2])
    assert record.read_bytes() == before
    write_run(folders[1], "samfed", 1, 0.75)
    add_to_record(record, folders[1:2])
    after, lines = record.read_bytes().splitlines(), before.splitlines()
    assert [a == b for a, b in zip(after, lines, strict=True)] == [True, True, True, False]
    (row,) = (row for row in comparison_table(read_record(record)).rows if row.name == "samfed")
    assert row.cells["dice"].by_seed[1] == pytest.approx(0.75, abs=0.1)


def test_runs_of_other_data_list_are_refused(tmp_path, folders):
    record = tmp_path / "runs.jsonl"
    add_to_record(record, folders)
    before = record.read_bytes()
    results = read_json(folders[0] / "results.json")
    write_json(folders[0] / "results.json", {**results, "hashes": {**results["hashes"], "datalist": "f" * 64}})
    with pytest.raises(Refused, match=r"found data list ffff.*; store the runs of this list in another record"):
        add_to_record(record, folders)
    assert record.read_bytes() == before
    with pytest.raises(Refused, match=r"found data list .*; store the runs of this list in another record"):
        add_to_record(tmp_path / "new.jsonl", folders)
    assert not (tmp_path / "new.jsonl").exists(), "a folder of two data lists"


def test_record_problems_are_reported_with_line(tmp_path, folders):
    record = tmp_path / "runs.jsonl"
    add_to_record(record, folders[:1])
    run = json.loads(record.read_text(encoding="utf-8"))
    del run["results"]["rounds"]
    record.write_text(
        f'{{\n{{"about": {{}}}}\n{json.dumps(run)}\n{json.dumps({**run, "about": []})}\n', encoding="utf-8"
    )
    with pytest.raises(Refused) as refused:
        read_record(record)
    for part in (
        "line 1: expected an object on each line, found no JSON (",
        "line 2: expected an object of two objects, `about` and `results`, found keys ['about']",
        "line 3 -> rounds: expected",
        "line 4: expected an object of two objects, `about` and `results`, found keys ['about', 'results']",
    ):
        assert part in str(refused.value)
    with pytest.raises(Refused, match="found no such file; `python -m study record` writes it"):
        read_record(tmp_path / "none.jsonl")


def test_only_finished_runs_are_recorded(tmp_path, capsys):
    folder, record = tmp_path / "R", tmp_path / "runs.jsonl"
    write_row(folder / "mine" / "seed-0", "mine", "samfed", 0, 0.8)
    (folder / "mine" / "seed-1").mkdir()
    (folder / "mine" / "seed-1" / "log.txt").write_text("refused: 1 problem")
    write_run(folder / "other" / "seed-0", "samfed", 0, 0.7)  # it ended as the comparison was killed: of no known row
    assert runs_in(folder) == [folder / "mine" / "seed-0"]
    assert main(["record", str(folder), "--to", str(record)]) == 0
    assert capsys.readouterr().out == f"{record}: 1 runs of {folder}\n"
    write_row(folder / "mine" / "seed-1", "mine", "samfed", 1, 0.9)
    assert main(["record", str(folder), "--to", str(record)]) == 0
    assert [(run.row, run.seed) for run in read_record(record)] == [("mine", 0), ("mine", 1)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--to", "runs.json"], "--to: expected a file whose name ends in .jsonl, found 'runs.json'"),
        (["--to", "runs.jsonl"], "expected a folder of runs, found no finished run; name the --output-dir of"),
    ],
)
def test_wrong_file_name_and_empty_folder_are_refused(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    assert main(["record", "R", *words]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
