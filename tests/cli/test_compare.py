"""``samfed compare``: files of rows, and the table that they become."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from samfed_monai.cli.compare import _problems, shareable, to_words
from samfed_monai.cli.main import main
from samfed_monai.config import find_bundle
from samfed_monai.config.check import check_bundle
from samfed_monai.config.overrides import overrides_of
from samfed_monai.core.errors import Problem, Problems, Refused
from samfed_monai.data import DataList
from samfed_monai.data.datalist import Item, Site
from samfed_monai.federation import comparison_runs
from samfed_monai.federation.comparison_runs import NamedRow, all_rows, read_rows
from samfed_monai.federation.job import JobCheck, check_job
from tests.reports.runs import write_run


@pytest.fixture
def write(tmp_path):
    def write(content):
        path = tmp_path / "rules.rows.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return path

    return write


def test_rows_keep_file_order_and_shared_settings(write):
    overrides = {"agreement::rule": "average", "agreement#tau": 0.9}
    rows = {"samfed": {"variant": "samfed", "title": "Default", "_why": "as it is"}}
    rows["inter"] = {"variant": "samfed", "note": "labels where both agree", "overrides": overrides}
    about = {"_note": "the rules", "title": "Agreement rule", "setting": "ImageNet encoder"}
    first, second = read_rows(write({**about, "overrides": {"agreement#tau": 0.8}, "rows": rows}))
    assert first == NamedRow(
        *("samfed", "samfed", {"agreement#tau": 0.8}, "Default", "", "ImageNet encoder", "Agreement rule")
    )
    assert second.overrides == {"agreement#tau": 0.9, "agreement#rule": "average"}
    assert second.about(1) == {
        **{"row": "inter", "variant": "samfed", "place": 1, "overrides": second.overrides},
        **{"note": "labels where both agree", "setting": "ImageNet encoder", "sweep": "Agreement rule"},
    }


def test_invalid_rows_file_is_reported_with_all_problems(write):
    rows = {"a/b": {"variant": "samfed"}, "cache": {"variant": "samfed"}, "c": {"overrides": [], "note": 3}}
    rows |= {"d": {"variant": "samfed", "overrides": {"rounds": 9, "variant": "no_sam"}}, "e": "samfed"}
    path = write({"titel": "x", "rows": rows})
    with pytest.raises(Refused) as refused:
        read_rows(path)
    text = str(refused.value)
    for part in (
        "refused: 9 problems",
        "rules.rows.json -> titel: expected one of ['overrides', 'rows', 'setting', 'title'], found an unknown key",
        "rows: expected a name of letters, digits and `_.+-`, none of cache, figures, teacher (folders), comparison.*,",
        "comparison.*, found 'cache'",
        "rows#c#variant: expected name of a variant",
        "rows#c#note: expected a string, found 3 (int)",
        "rows#c#overrides: expected an object, found [] (list)",
        "rows#d#overrides: expected ids that rows may change; a variant is the row's `variant`, others are on the",
        "on the command line, found 'rounds'",
        "on the command line, found 'variant'",
        "rows#e: expected an object, found 'samfed' (str)",
    ):
        assert part in text


@pytest.mark.parametrize("content", [[], {}, {"rows": {}}, {"rows": ["samfed"]}])
def test_rows_file_without_rows_is_refused(write, content):
    with pytest.raises(Refused, match=r"json( -> rows)?: expected (an object|rows by name|at least one row)"):
        read_rows(write(content))


def test_variants_and_rows_are_merged_and_name_clashes_reported():
    problems = Problems()
    again = NamedRow("samfed", "samfed", title="Default")
    rows = all_rows(["samfed", "no_sam"], [again, NamedRow("tau", "samfed", {"agreement#tau": 0.8})], problems)
    assert [(row.name, row.title) for row in rows] == [("samfed", "Default"), ("no_sam", ""), ("tau", "")]
    assert list(problems) == []
    twice = [NamedRow("x", "samfed"), NamedRow("x", "no_sam")]
    other = NamedRow("samfed", "samfed", {"agreement#tau": 0.8})
    all_rows(["samfed"], [other, NamedRow("no_sam", "samfed"), *twice], problems)
    assert [str(problem) for problem in problems] == [
        "rows -> samfed: expected unique names, found two rows with this name; rename one",
        "rows -> no_sam: expected the variant of that name, or a name other than 'no_sam', found variant 'samfed'",
        "rows -> x: expected unique names, found two rows with this name; rename one",
    ]


def test_row_role_is_read_and_unknown_role_refused(write):
    path = write({"rows": {"floor": {"variant": "local_only", "as": "dp_only"}, "b": {"variant": "x", "as": "hero"}}})
    with pytest.raises(Refused, match=r"rows#b#as: expected one of \['dp_only', 'oracle'\], found 'hero'"):
        read_rows(path)
    (row,) = read_rows(write({"rows": {"floor": {"variant": "local_only", "as": "dp_only"}}}))
    assert row.about(0)["as"] == "dp_only"


BUNDLE = Path(__file__).resolve().parents[2] / "bundles" / "samfed_skin"


def test_overrides_round_trip_through_arguments():
    values = [0.5, "text", "1", None, [1, "x"], -1, {"_target_": "x"}, True, "{1}"]
    overrides = {f"a#{number}": value for number, value in enumerate(values)}
    assert overrides_of(to_words(overrides)) == overrides
    assert to_words({"a#b": 0.5, "d": "1"}) == ("--a#b=0.5", '--d="1"')


def test_data_folder_is_shown_as_environment_variable(monkeypatch):
    monkeypatch.setenv("SAMFED_DATA", "/some/where/")
    assert shareable("samfed compare --data-root /some/where/data") == "samfed compare --data-root $SAMFED_DATA/data"
    monkeypatch.delenv("SAMFED_DATA")
    assert shareable("samfed compare") == "samfed compare"


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
    monkeypatch.setattr(comparison_runs, "run_all", run_all)
    importlib.import_module("samfed_monai.config.workflow")  # imported later, it would keep the replacement for good
    monkeypatch.setattr("samfed_monai.config.check.check_bundle", _only_spelling)
    monkeypatch.setattr("samfed_monai.federation.preparation.check_data", lambda *_, **__: None)
    monkeypatch.setattr("samfed_monai.federation.job.check_job", lambda *_, **__: JobCheck([], []))

    def compare(rows, *words):
        path = tmp_path / "sweep.json"
        path.write_text(json.dumps(rows), encoding="utf-8")
        options = ["--datalist", "l.json", "--data-root", "d", "--rounds", "2", "--output-dir", str(tmp_path / "R")]
        return main(["compare", str(BUNDLE), *options, "--rows", str(path), *words]), made

    return compare


def _only_spelling(root, workflow, *, overrides):
    """The bundle's check without looking for the data."""
    given = {key: value for key, value in overrides.items() if key not in ("datalist", "data_root")}
    return check_bundle(root, workflow, overrides=given, ready=False)


def test_rows_run_in_separate_folders_and_appear_in_table(compare, tmp_path, capsys):
    rows = {"rows": {"inter": {"variant": "samfed", "overrides": {"agreement#rule": "average"}}}}
    code, runs = compare(rows, "--variants", "no_sam", "--seeds", "0,00,1", "--image_size", "64")
    assert code == 0
    assert [run.folder.relative_to(tmp_path / "R").as_posix() for run in runs] == [
        *("no_sam/seed-0", "inter/seed-0", "no_sam/seed-1", "inter/seed-1")
    ]
    assert runs[0].extra == ("--image_size=64",)
    assert runs[1].extra == ("--image_size=64", "--agreement#rule=average")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["inter", "2", "0.805", "±", "0.007"] in [line[:5] for line in lines]
    assert (tmp_path / "R" / "comparison.html").is_file()


def test_images_are_checked_once_and_skipped_when_all_rows_done(compare, tmp_path, monkeypatch, capsys):
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


def test_site_with_other_data_root_is_checked_there(compare, tmp_path, monkeypatch):
    checked = []
    monkeypatch.setattr(
        "samfed_monai.federation.preparation.check_data",
        lambda datalist, data_root, *, cache_dir: checked.append((list(datalist.sites), data_root)),
    )
    sites = {name: Site([Item(f"{name}.png", name[-1] * 64)]) for name in ("s1", "s2")}
    DataList("list", [], sites).save(tmp_path / "l.json")
    own = tmp_path / "own"
    own.mkdir()
    there = {"variant": "samfed", "overrides": {"sites#s1#data_root": str(own)}}
    assert compare({"rows": {"all": {"variant": "samfed"}, "there": there}})[0] == 0
    assert checked == [(["s1", "s2"], str(tmp_path / "d")), (["s2"], str(tmp_path / "d")), (["s1"], str(own))]


def test_unrunnable_rows_are_reported_before_first_run(compare, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("samfed_monai.federation.job.check_job", check_job)
    items = {name: [Item(f"{name}.png", name[-1] * 64)] for name in ("s1", "s2", "s3")}
    public = [Item("p.png", "a" * 64, "m.png", "b" * 64)]
    DataList("list", public, {name: Site(own) for name, own in items.items()}).save(tmp_path / "l.json")
    late = {"variant": "samfed", "overrides": {"privacy#secure_aggregation": {"threshold": 9}}}
    weak = {"variant": "weak_labels"}
    code, runs = compare({"rows": {"late": late, "weak": weak}}, "--variants", "samfed", "--job#quorum", "9")
    error = capsys.readouterr().err
    assert (code, runs) == (2, [])
    assert "  - row late: federate.json -> privacy#secure_aggregation#threshold: expected from 2 to 3" in error
    assert "  - row weak: list -> s1 -> labels: expected labels (this variant learns from them)" in error
    assert "  - quorum: expected a number from 1 to 3, the number of sites, found 9" in error, "once for all rows"


def test_misspelt_override_and_variant_are_reported_with_row(compare, capsys):
    good, bad = ({"variant": "samfed", "overrides": {f"agreement#{name}": 0.8}} for name in ("tau", "tua"))
    code, runs = compare({"rows": {"good": good, "bad": bad, "ugly": {"variant": "samfde"}}})
    assert (code, runs) == (2, [])
    message = capsys.readouterr().err
    assert "row bad: command line -> agreement#tua: expected an id of this workflow" in message
    assert "did you mean 'agreement#tau'?" in message
    assert "found 'samfde'; did you mean 'samfed'?" in message
    assert "good" not in message


def test_missing_rows_and_invalid_options_are_refused(capsys):
    words = ["compare", str(BUNDLE), "--datalist", "l", "--data-root", "d", "--rounds", "2", "--output-dir", "r"]
    assert main(words) == 2
    assert "--variants: expected rows to compare, found neither --variants nor --rows" in capsys.readouterr().err
    words += ["--variants", "no_such", "--seeds", "0,x", "--jobs", "0", "--seed=7", "--job::variant=x"]
    assert main(words) == 2
    error = capsys.readouterr().err
    for part in (
        *("--seeds: expected whole numbers", "--jobs: expected 1 or more", "found 'no_such'", "-> job#variant: "),
        "command line -> seed: expected an option that all runs can share, found 7; use --variants, --seeds, --rounds",
    ):
        assert part in error


def test_shared_option_is_refused_only_if_unread_by_all_rows():
    rows = [NamedRow(name, name) for name in ("samfed", "no_sam")]
    weight = "terms#sam_kd#weight"
    problems, unread = _problems(find_bundle("samfed_skin"), rows, {weight: 0.5})
    assert unread == {"no_sam": {weight}}
    assert not [problem for problem in problems if weight in problem.where]
    mine = NamedRow("mine", "no_sam", {weight: 0.7})
    problems, unread = _problems(find_bundle("samfed_skin"), [*rows, mine], {weight: 0.5})
    assert unread == {"no_sam": {weight}}
    assert [problem.where for problem in problems if weight in problem.where] == [f"row mine: command line -> {weight}"]
    problems, unread = _problems(find_bundle("samfed_skin"), rows[1:], {weight: 0.5})
    assert [problem.where for problem in problems if weight in problem.where] == [f"command line -> {weight}"]
    assert unread == {}
