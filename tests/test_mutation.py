"""What ``make mutate`` changes."""

from __future__ import annotations

import ast

import pytest

from tests.mutation import PACKAGE, ROOT, Change, changed, changes_of, files_of


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
def test_what_is_changed(before: str, after: list[str]) -> None:
    assert [ast.unparse(each) for each in changed(ast.parse(before, mode="eval").body)] == after


def test_a_file_changes_in_one_place(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("tests.mutation.ROOT", tmp_path)
    path = tmp_path / "room.py"
    path.write_text(
        "é: Literal[1] = x  # a number\nif (\n    a\n    < b\n):\n    raise ValueError(2)\nlogger.info(3)\n"
    )
    (change,) = changes_of(path)
    assert str(change) == "room.py:3: a < b  ->  a <= b"
    whole = path.read_bytes()
    assert change.applied(whole) == whole.replace(b"a\n    < b", b"(a <= b)")


def test_bytes_count_and_not_letters() -> None:
    source = "é = f('é', 1)".encode()
    node = ast.parse(source).body[0].value.args[1]
    assert Change("a/b.py", node, ast.Constant(2)).applied(source) == "é = f('é', (2))".encode()


def test_the_file_of_the_same_name_is_run_first() -> None:
    assert files_of(f"{PACKAGE}/losses/structure.py")[0] == "tests/losses/test_structure.py"
    assert (ROOT / files_of(f"{PACKAGE}/privacy/noise.py")[0]).is_file()
