"""A registry answers an unknown name with the names it has."""

from __future__ import annotations

import bisect

import pytest

from samfed_monai.core.errors import Refused
from samfed_monai.core.registry import Elsewhere, Registry


@pytest.fixture
def rules() -> Registry[str]:
    registry: Registry[str] = Registry("agreement rule")
    registry.register("teacher")("T")
    registry.register("confidence")("C")
    return registry


def test_register_hands_back_what_it_files(rules: Registry[str]):
    def rule() -> None: ...

    functions: Registry = Registry("rule")
    assert functions.register("mine")(rule) is rule
    assert functions["mine"] is rule


def test_names_come_sorted_and_can_be_asked_for(rules: Registry[str]):
    assert list(rules) == ["confidence", "teacher"]
    assert "teacher" in rules
    assert "student" not in rules
    assert 3 not in rules
    assert rules["confidence"] == "C"


def test_a_misspelt_name_is_refused_with_a_guess(rules: Registry[str]):
    message = (
        r"agreement rule: expected one of \['confidence', 'teacher'\], found 'confidense'; did you mean 'confidence'"
    )
    with pytest.raises(Refused, match=message):
        rules["confidense"]


def test_a_name_like_no_other_is_refused_with_the_list(rules: Registry[str]):
    with pytest.raises(Refused, match=r"\['confidence', 'teacher'\], found 'zzz'; see the names expected"):
        rules["zzz"]


def test_a_name_can_be_taken_only_once(rules: Registry[str]):
    with pytest.raises(ValueError, match="agreement rule 'teacher' is registered already"):
        rules.register("teacher")
    assert rules["teacher"] == "T"


def test_what_is_elsewhere_is_imported_when_it_is_asked_for():
    lost = Elsewhere("samfed_monai.no_such_module.thing", "my-lab 1.0")
    places = {"sorter": Elsewhere("bisect.insort_right"), "lost": lost}
    functions: Registry = Registry("function", elsewhere=lambda: places)
    functions.register("own")(len)
    assert list(functions) == ["lost", "own", "sorter"]
    assert "lost" in functions
    assert functions["sorter"] is bisect.insort_right
    assert functions["own"] is len
    with pytest.raises(Refused, match=r"what my-lab 1.0 brings, found .*no_such_.*; update or uninstall my-lab$"):
        functions["lost"]
    with pytest.raises(Refused, match=r"function: expected one of \['lost', 'own', 'sorter'\], found 'sort'; did you"):
        functions["sort"]
