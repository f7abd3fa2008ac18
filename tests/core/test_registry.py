"""A registry answers an unknown name with the names it has."""

from __future__ import annotations

import bisect

import pytest

from samfed_monai.core.errors import Refused
from samfed_monai.core.registry import Elsewhere, Registry


@pytest.fixture
def rules() -> Registry[str]:
    registry: Registry[str] = Registry("agreement rule")
    assert registry.register("teacher")("T") == "T", "a decorator hands back what it files"
    registry.register("confidence")("C")
    return registry


def test_names_come_sorted_can_be_asked_for_and_are_taken_once(rules: Registry[str]):
    assert list(rules) == ["confidence", "teacher"]
    assert [name in rules for name in ("teacher", "student", 3)] == [True, False, False]
    assert rules["confidence"] == "C"
    with pytest.raises(ValueError, match="agreement rule 'teacher' is registered already"):
        rules.register("teacher")


@pytest.mark.parametrize(
    ("name", "hint"), [("confidense", "did you mean 'confidence'"), ("zzz", "choose one of the expected names")]
)
def test_an_unknown_name_is_refused_with_the_list_and_a_guess(rules: Registry[str], name: str, hint: str):
    with pytest.raises(
        Refused, match=rf"agreement rule: expected one of \['confidence', 'teacher'\], found '{name}'; {hint}"
    ):
        rules[name]


def test_what_is_elsewhere_is_imported_when_it_is_asked_for():
    lost = Elsewhere("samfed_monai.no_such_module.thing", "my-lab 1.0")
    places = {"sorter": Elsewhere("bisect.insort_right"), "lost": lost}
    functions: Registry = Registry("function", elsewhere=lambda: places)
    functions.register("own")(len)
    assert list(functions) == ["lost", "own", "sorter"]
    assert "lost" in functions
    assert functions["sorter"] is bisect.insort_right
    assert functions["own"] is len
    with pytest.raises(Refused, match=r"an object of my-lab 1.0, found .*no_such_.*; update or uninstall my-lab$"):
        functions["lost"]
    with pytest.raises(Refused, match=r"function: expected one of \['lost', 'own', 'sorter'\], found 'sort'; did you"):
        functions["sort"]
