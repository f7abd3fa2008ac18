from __future__ import annotations

import pytest

from samfed_monai.core.errors import Problems, Refused
from samfed_monai.networks import KeyPatterns, split_keys
from samfed_monai.networks.key_patterns import check_patterns

NAMES = ["encoder.a", "encoder.norm.weight", "head.weight", "head.bias"]


def test_every_name_is_in_one_part_in_the_order_of_the_state_dict():
    split = split_keys(NAMES, KeyPatterns(shared=("encoder.*",), personal=("*.norm.[a-z]eight2", "head.*")[1:]))
    assert split.shared == ("encoder.a", "encoder.norm.weight")
    assert split.personal == ("head.weight", "head.bias")
    assert split.frozen == ()


def test_what_no_pattern_names_is_frozen():
    split = split_keys(NAMES, KeyPatterns(shared=("head.weight",), personal=()))
    assert split.frozen == ("encoder.a", "encoder.norm.weight", "head.bias")


def test_case_matters_and_a_star_crosses_dots():
    assert split_keys(NAMES, KeyPatterns(("e*t",), ())).shared == ("encoder.norm.weight",)
    with pytest.raises(Refused, match=r"found no name like 'Head\.\*'"):
        split_keys(NAMES, KeyPatterns(("Head.*",), ()))


def test_useless_patterns_and_names_of_both_parts_are_refused_together():
    with pytest.raises(Refused) as refused:
        split_keys(NAMES, KeyPatterns(shared=("*.weight", "tail.*"), personal=("head.*",)), where="toy")
    assert [str(problem) for problem in refused.value.problems] == [
        "toy -> shared: expected at least one, found no name like 'tail.*'; correct the pattern or leave it out",
        "toy: expected one of both, found 'head.weight' both shared and personal; let one pattern alone match it",
    ]


@pytest.mark.parametrize("patterns", ["head.*", None, [1], {"head.*": 1}])
def test_what_is_no_list_of_patterns_is_told_what_one_looks_like(patterns):
    problems = Problems()
    assert not check_patterns(patterns, "toy", problems, example="head.*")
    assert [(problem.found, problem.mend) for problem in problems] == [(repr(patterns), 'for instance ["head.*"]')]


def test_lists_of_patterns_fit_even_an_empty_one():
    problems = Problems()
    assert check_patterns([], "toy", problems, example="a")
    assert check_patterns(("a", "b"), "toy", problems, example="a")
    assert not list(problems)
