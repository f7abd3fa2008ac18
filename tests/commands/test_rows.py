from __future__ import annotations

import json

import pytest

from samfed_monai.commands.compare import NamedRow, all_rows, read_rows
from samfed_monai.core.errors import Problems, Refused


@pytest.fixture
def write(tmp_path):
    def write(content):
        path = tmp_path / "rules.rows.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return path

    return write


def test_rows_come_in_the_order_of_the_file_with_what_all_share(write):
    path = write(
        {
            "_note": "the rules",
            "title": "Agreement rule",
            "setting": "ImageNet encoder",
            "overrides": {"client#agreement#tau": 0.8},
            "rows": {
                "samfed": {"variant": "samfed", "title": "Default", "_why": "as it is"},
                "inter": {
                    "variant": "samfed",
                    "note": "labels where both agree",
                    "overrides": {"client::agreement::rule": "intersection", "client#agreement#tau": 0.9},
                },
            },
        }
    )
    first, second = read_rows(path)
    assert first == NamedRow(
        *("samfed", "samfed", {"client#agreement#tau": 0.8}, "Default", "", "ImageNet encoder", "Agreement rule")
    )
    assert second.overrides == {"client#agreement#tau": 0.9, "client#agreement#rule": "intersection"}
    assert second.about(1) == {
        **{"row": "inter", "variant": "samfed", "place": 1, "overrides": second.overrides},
        **{"note": "labels where both agree", "setting": "ImageNet encoder", "sweep": "Agreement rule"},
    }


def test_everything_that_is_wrong_in_a_file_is_told_at_once(write):
    path = write(
        {
            "titel": "x",
            "rows": {
                "a/b": {"variant": "samfed"},
                "cache": {"variant": "samfed"},
                "c": {"overrides": [], "note": 3},
                "d": {"variant": "samfed", "overrides": {"rounds": 9, "variant": "no_sam"}},
                "e": "samfed",
            },
        }
    )
    with pytest.raises(Refused) as refused:
        read_rows(path)
    text = str(refused.value)
    for part in (
        "refused: 9 problems",
        "rules.rows.json#titel: expected one of title, setting, overrides, rows, found an unknown key; did you mean",
        "rows#a/b: expected a name of letters, digits and `_.+-`",
        "rows#cache: expected a name of letters, digits and `_.+-`, none of cache, figures, teacher, found 'cache'",
        "rows#c#variant: expected name of a variant",
        "rows#c#note: expected text, found 3 (int)",
        "rows#c#overrides: expected ids and values",
        "rows#d#overrides#rounds: expected ids in which rows may differ, found set by a row; it is given once",
        "rows#d#overrides#variant: expected ids in which rows may differ, found set by a row; it is the row's",
        "rows#e: expected an object with `variant`, found str",
    ):
        assert part in text


def test_a_name_twice_in_a_file_is_refused(write):
    with pytest.raises(Refused, match=r"'a'|\"a\"|a"):
        read_rows(write('{"rows": {"a": {"variant": "samfed"}, "a": {"variant": "no_sam"}}}'))


@pytest.mark.parametrize("content", [[], {}, {"rows": {}}, {"rows": ["samfed"]}])
def test_a_file_without_rows_is_refused(write, content):
    with pytest.raises(Refused, match=r"rules\.rows\.json: expected an object with `rows`, by name"):
        read_rows(write(content))


def test_variants_and_rows_are_put_together():
    problems = Problems()
    again = NamedRow("samfed", "samfed", title="Default")
    rows = all_rows(["samfed", "no_sam"], [again, NamedRow("tau", "samfed", {"client#agreement#tau": 0.8})], problems)
    assert [(row.name, row.title) for row in rows] == [("samfed", "Default"), ("no_sam", ""), ("tau", "")]
    assert list(problems) == []


def test_a_name_that_stands_for_two_things_is_a_problem():
    problems = Problems()
    all_rows(
        ["samfed"],
        [
            NamedRow("samfed", "samfed", {"client#agreement#tau": 0.8}),
            NamedRow("no_sam", "samfed"),
            NamedRow("x", "samfed"),
            NamedRow("x", "no_sam"),
        ],
        problems,
    )
    assert [str(problem) for problem in problems] == [
        "rows -> samfed: expected each name once, found two rows of that name; rename one",
        "rows -> no_sam: expected the variant of that name, or another name than 'no_sam', found variant 'samfed'",
        "rows -> x: expected each name once, found two rows of that name; rename one",
    ]


def test_a_row_may_play_the_floor_or_the_ceiling_of_its_setting(write):
    path = write({"rows": {"floor": {"variant": "local_only", "as": "dp_only"}, "b": {"variant": "x", "as": "hero"}}})
    with pytest.raises(Refused, match=r"rows#b#as: expected dp_only or oracle, found 'hero'"):
        read_rows(path)
    (row,) = read_rows(write({"rows": {"floor": {"variant": "local_only", "as": "dp_only"}}}))
    assert row.about(0)["as"] == "dp_only"
