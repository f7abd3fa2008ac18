"""A registry answers an unknown name with the names it has."""

from __future__ import annotations

import bisect

import pytest

from samfed_monai.core.errors import Refused
from samfed_monai.core.registry import Deferred, Registry


@pytest.fixture
def rules() -> Registry[str]:
    registry: Registry[str] = Registry("agreement rule")
    assert registry.register("teacher")("T") == "T", "a decorator hands back what it files"
    registry.register("confidence")("C")
    return registry


def test_names_are_sorted_and_registered_once(rules: Registry[str]):
    assert list(rules) == ["confidence", "teacher"]
    assert [name in rules for name in ("teacher", "student", 3)] == [True, False, False]
    assert rules["confidence"] == "C"
    with pytest.raises(ValueError, match="agreement rule 'teacher' is registered already"):
        rules.register("teacher")


@pytest.mark.parametrize(
    ("name", "hint"), [("confidense", "did you mean 'confidence'"), ("zzz", "choose one of the expected names")]
)
def test_unknown_name_is_refused_with_suggestion(rules: Registry[str], name: str, hint: str):
    message = rf"agreement rule: expected one of \['confidence', 'teacher'\], found '{name}'; {hint}"
    with pytest.raises(Refused, match=message):
        rules[name]


def test_external_entries_are_imported_on_access():
    gone = Deferred("samfed_monai.no_such_module.thing", "my-lab 1.0")
    entries = {"sorter": Deferred("bisect.insort_right"), "gone": gone}
    functions: Registry = Registry("function", elsewhere=lambda: entries)
    functions.register("own")(len)
    assert list(functions) == ["gone", "own", "sorter"]
    assert "gone" in functions
    assert functions["sorter"] is bisect.insort_right
    assert functions["own"] is len
    with pytest.raises(Refused, match=r"an object of my-lab 1.0, found .*no_such_.*; update or uninstall my-lab$"):
        functions["gone"]
    with pytest.raises(Refused, match=r"function: expected one of \['gone', 'own', 'sorter'\], found 'sort'; did you"):
        functions["sort"]
