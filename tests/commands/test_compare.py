from __future__ import annotations

import json
from pathlib import Path

import pytest

import samfed_monai.config.exit_codes  # noqa: F401  imported now, so that it keeps its own check_bundle
from samfed_monai.commands import run_many
from samfed_monai.commands.compare import portable, words_of
from samfed_monai.commands.main import main
from samfed_monai.config.check import check_bundle
from samfed_monai.config.overrides import overrides_of
from samfed_monai.core.errors import Problem, Refused
from samfed_monai.data import DataList
from tests.reports.runs import write_run

BUNDLE = Path(__file__).resolve().parents[2] / "bundles" / "samfed_skin"


def test_overrides_become_words_and_come_back_as_they_were():
    overrides = {
        "a#b": 0.5,
        "c": "text",
        "d": "1",
        "e": None,
        "f": [1, "x"],
        "g": -1,
        "h": {"_target_": "x"},
        "i": True,
        "j": "{1}",
    }
    assert overrides_of(words_of(overrides)) == overrides
    assert words_of({"a#b": 0.5, "d": "1"}) == ("--a#b=0.5", '--d="1"')


def test_the_data_s_folder_is_told_by_its_variable(monkeypatch):
    monkeypatch.setenv("SAMFED_DATA", "/some/where/")
    assert portable("samfed compare --data-root /some/where/data") == "samfed compare --data-root $SAMFED_DATA/data"
    monkeypatch.delenv("SAMFED_DATA")
    assert portable("samfed compare") == "samfed compare"


@pytest.fixture
def compare(tmp_path, monkeypatch):
    """Runs the command with runs that only write their results; gives the runs."""
    made = []

    def run_all(runs, **_):
        made.extend(runs)
        for run in runs:
            write_run(run.folder, run.variant, run.seed, 0.8 + 0.01 * run.seed)
            run.mark_done()

    DataList("list", []).save(tmp_path / "l.json")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_many, "run_all", run_all)
    monkeypatch.setattr("samfed_monai.config.check.check_bundle", _only_spelling)
    monkeypatch.setattr("samfed_monai.federation.preparation.check_data", lambda *_, **__: None)

    def compare(rows, *words):
        path = tmp_path / "sweep.json"
        path.write_text(json.dumps(rows), encoding="utf-8")
        places = ["--datalist", "l.json", "--data-root", "d", "--rounds", "2", "--output-dir", str(tmp_path / "R")]
        return main(["compare", str(BUNDLE), *places, "--rows", str(path), *words]), made

    return compare


def _only_spelling(root, workflow, *, overrides):
    """The bundle's check without looking for the data."""
    given = {key: value for key, value in overrides.items() if key not in ("datalist", "data_root")}
    return check_bundle(root, workflow, overrides=given, ready=False)


def test_rows_run_into_folders_of_their_own_and_the_table_has_their_names(compare, tmp_path, capsys):
    rows = {"rows": {"inter": {"variant": "samfed", "overrides": {"client#agreement#rule": "intersection"}}}}
    code, runs = compare(rows, "--variants", "no_sam", "--seeds", "0,1", "--image_size", "64")
    assert code == 0
    assert [run.folder.relative_to(tmp_path / "R").as_posix() for run in runs] == [
        *("no_sam/seed-0", "inter/seed-0", "no_sam/seed-1", "inter/seed-1")
    ]
    assert runs[0].extra == ("--image_size", "64")
    assert runs[1].extra == ("--image_size=64", "--client#agreement#rule=intersection")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["inter", "2", "0.805", "±", "0.007"] in [line[:5] for line in lines]
    assert (tmp_path / "R" / "comparison.html").is_file()


def test_images_are_checked_once_before_the_rows_and_not_where_all_are_done(compare, tmp_path, monkeypatch, capsys):
    checked = []

    def check_data(datalist, data_root, *, cache_dir):
        checked.append((datalist.name, data_root, cache_dir))
        if len(checked) == 1:
            raise Refused([Problem("a.png", found="other bytes", expected="those that were listed")])

    monkeypatch.setattr("samfed_monai.federation.preparation.check_data", check_data)
    rows = {"rows": {"mine": {"variant": "samfed"}}}
    code, runs = compare(rows)
    assert (code, runs) == (2, [])
    assert "a.png: expected those that were listed, found other bytes" in capsys.readouterr().err
    assert compare(rows)[0] == 0
    assert checked[1:] == [("list", str(tmp_path / "d"), str(tmp_path / "R" / "cache"))]
    assert compare(rows)[0] == 0
    assert len(checked) == 2


def test_a_misspelt_override_and_an_unknown_variant_are_told_with_their_rows(compare, capsys):
    rows = {
        "rows": {
            "good": {"variant": "samfed", "overrides": {"client#agreement#tau": 0.8}},
            "bad": {"variant": "samfed", "overrides": {"client#agreement#tua": 0.8}},
            "ugly": {"variant": "samfde"},
        }
    }
    code, runs = compare(rows)
    assert (code, runs) == (2, [])
    message = capsys.readouterr().err
    assert "row bad: federate.json -> client -> agreement#tua: expected an id that this workflow has" in message
    assert "did you mean 'agreement#tau'?" in message
    assert "found 'samfde'; did you mean 'samfed'?" in message
    assert "good" not in message


def test_without_variants_and_rows_there_is_nothing_to_compare(capsys):
    words = ["compare", str(BUNDLE), "--datalist", "l", "--data-root", "d", "--rounds", "2", "--output-dir", "r"]
    assert main(words) == 2
    assert "--variants: expected rows to compare, found neither it nor --rows" in capsys.readouterr().err


def test_a_file_of_rows_that_is_not_there_is_refused(tmp_path):
    from samfed_monai.commands.compare import read_rows

    with pytest.raises(Refused, match=r"none\.json"):
        read_rows(tmp_path / "none.json")
