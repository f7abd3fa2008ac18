"""The changes of ``make mutate``."""

from __future__ import annotations

import ast

import pytest
from coverage import CoverageData

from tests.mutation import PACKAGE, Change, Reached, changed, changes_of


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("a < b", ["a <= b"]),
        ("a is None", ["a is not None"]),
        ("a < b < c", []),
        ("a and b", ["a or b"]),
        ("not a", ["a"]),
        ("-a", ["+a"]),
        ("a * b", ["a / b"]),
        ("a + 'text'", []),
        ("True", ["False"]),
        ("7", ["8"]),
        ("f(a, b=c, d=e)", ["f(a, d=e)", "f(a, b=c)"]),
        ("zip(a, b, strict=True)", []),
    ],
)
def test_expressions_are_mutated_as_expected(before: str, after: list[str]) -> None:
    assert [ast.unparse(each) for each in changed(ast.parse(before, mode="eval").body)] == after


def test_file_change_is_applied_in_one_place(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("tests.mutation.ROOT", tmp_path)
    path = tmp_path / "room.py"
    path.write_text(
        "é: Literal[1] = x  # a number\nif (\n    a\n    < b\n):\n    raise ValueError(2)\nlogger.info(3)\n"
    )
    (change,) = changes_of(path)
    assert str(change) == "room.py:3: a < b  ->  a <= b"
    whole = path.read_bytes()
    assert change.applied(whole) == whole.replace(b"a\n    < b", b"(a <= b)")


def test_change_offsets_are_in_bytes() -> None:
    source = "é = f('é', 1)".encode()
    node = ast.parse(source).body[0].value.args[1]
    assert Change("a/b.py", node, ast.Constant(2)).applied(source) == "é = f('é', (2))".encode()


def test_tests_reaching_line_are_sorted_by_distance(tmp_path) -> None:
    path = tmp_path / "coverage"
    file = f"/copy/{PACKAGE}/losses/dice.py"
    data = CoverageData(str(path))
    for context, lines in {
        "tests/methods/test_a.py::test_far[a@b]|run": [3, 4, 5],
        "tests/losses/test_other.py::test_room@forking|run": [3, 4],
        "tests/losses/test_dice.py::test_own|setup": [3],
        "tests/losses/test_dice.py::test_else|run": [6],
        "": [1, 2],
    }.items():
        data.set_context(context)
        data.add_lines({file: lines})
    data.write()
    number = ast.Constant(1, lineno=3, end_lineno=3)
    reached, own = Reached(path), f"{PACKAGE}/losses/dice.py"
    everything = [
        *("tests/losses/test_dice.py", "tests/losses/test_dice.py::test_else"),
        *("tests/losses/test_other.py::test_room", "tests/methods/test_a.py::test_far[a@b]"),
    ]
    on_the_line = [test for test in everything if not test.endswith("test_else")]
    assert reached.tests(Change(own, number, number, (3, 6))) == on_the_line
    nowhere = ast.Constant(1, lineno=7, end_lineno=7)
    assert reached.tests(Change(own, nowhere, nowhere, (5, 7))) == [everything[1], everything[3]]
    assert sorted(reached.tests(Change(own, number, number, None))) == sorted(everything)
    assert reached.tests(Change(f"{PACKAGE}/losses/none.py", number, number, (3, 6))) == []
