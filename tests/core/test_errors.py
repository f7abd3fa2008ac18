"""Problems are collected and refused together; every error knows its exit code."""

from __future__ import annotations

import pytest

from samfed_monai.core.errors import (
    ExitCode,
    Problem,
    Problems,
    Refused,
    SamFedError,
    Stopped,
    closest,
    did_you_mean,
    folded,
)


def test_a_problem_reads_as_one_sentence_with_place_and_hint():
    problem = Problem("train.json -> loss#alpha", found="'0.5' (str)", expected="a number", hint="remove the quotes")
    assert str(problem) == "train.json -> loss#alpha: expected a number, found '0.5' (str); remove the quotes"


def test_a_problem_without_a_mend_ends_after_what_was_found():
    assert str(Problem("a.png", found="0 bytes", expected="an image")) == "a.png: expected an image, found 0 bytes"


def test_refused_lists_every_problem_on_its_own_line():
    error = Refused([Problem("a", found="1", expected="2"), Problem("b", found="3", expected="4", hint="try 4")])
    assert str(error).splitlines() == [
        "refused: 2 problems",
        "  - a: expected 2, found 1",
        "  - b: expected 4, found 3; try 4",
    ]
    assert [problem.where for problem in error.problems] == ["a", "b"]


def of_files(count: int, where: str = "a b/{}.png", found: str = "'{}' also as c d/{}.png") -> list[Problem]:
    return [Problem(where.format(n, n), found.format(n, n), "each once", "move one away") for n in range(count)]


@pytest.mark.parametrize(
    ("problems", "lines"),
    [
        (of_files(3), [str(problem) for problem in of_files(3)]),
        (
            of_files(10_015),
            [
                "10015 times, such as a b/0.png, a b/1.png and a b/2.png; the first: expected each once, found '0' "
                "also as c d/0.png; move one away"
            ],
        ),
        (
            of_files(4, found="it"),
            ["4 times, such as a b/0.png, a b/1.png and a b/2.png: expected each once, found it; move one away"],
        ),
        (of_files(4, where="l.json -> sites -> a -> test[{}]", found="no mask"), 1),
        (of_files(4, where="o.csv, line {}", found="'x{}'"), 1),
        (of_files(4, where="a.zip -> x y{}/ä ö{}.png", found="a backslash in 'x y{}'"), 1),
        ([Problem(f"s/Lea {name}.png", "none", f"a mask Lea {name}") for name in ("li", "re", "ob", "un")], 1),
        ([*of_files(4), *of_files(4, found="another cause")], 2),
        ([*of_files(2), *of_files(9, found="x{}")[2:], *of_files(2, found="y z")], 5),
        ([Problem("--site", str(n), "a name") for n in range(9)], 9),  # one place: each was typed
        ([Problem(f"train.json -> {key}", "'1'", "a number") for key in "abcdefgh"], 8),  # keys are never folded
        ([Problem(f"loss#{key}", "'1'", "a number") for key in ("alpha", "beta", "gamma", "delta")], 4),
    ],
)
def test_problems_of_one_cause_are_one_line_with_their_count_and_three_places(problems, lines):
    found = folded(problems)
    assert (len(found) if isinstance(lines, int) else found) == lines
    error = Refused(problems)
    assert error.problems == problems, "programs see every one"
    assert str(error).splitlines() == [f"refused: {len(problems)} problems", *(f"  - {line}" for line in found)]


def test_refused_reads_an_iterator_once_and_tells_a_problem_once():
    error = Refused(Problem(name, found="x", expected="y") for name in "aba")
    assert [problem.where for problem in error.problems] == ["a", "b"]
    assert "refused: 2 problems" in str(error)
    assert str(Refused([Problem("a", found="1", expected="2")])).startswith("refused: 1 problem\n")


def test_stopped_says_how_to_go_on():
    error = Stopped("disk full in round 3", resume="run the same command again")
    assert str(error) == "stopped: disk full in round 3\n  to go on: run the same command again"
    assert (error.reason, error.resume) == ("disk full in round 3", "run the same command again")


def test_stopped_without_a_way_on_is_one_line():
    assert str(Stopped("no site answered")) == "stopped: no site answered"


@pytest.mark.parametrize(
    ("error", "code", "builtin"),
    [
        (Refused([Problem("a", found="1", expected="2")]), 2, ValueError),
        (Stopped("why"), 3, RuntimeError),
    ],
)
def test_each_error_carries_its_exit_code_and_is_a_builtin_error_too(error, code, builtin):
    assert int(error.exit_code) == code
    assert isinstance(error, SamFedError)
    assert isinstance(error, builtin)


def test_exit_codes_are_the_documented_ones():
    codes = {"DONE": 0, "FAILED": 1, "REFUSED": 2, "STOPPED": 3, "INTERRUPTED": 130}
    assert {code.name: int(code) for code in ExitCode} == codes


def test_problems_collects_in_order_and_refuses_all_at_once():
    problems = Problems()
    problems.add("a", found="1", expected="2")
    problems.extend([Problem("b", found="3", expected="4")])
    assert len(problems) == 2
    assert [problem.where for problem in problems] == ["a", "b"]
    with pytest.raises(Refused, match=r"(?s)2 problems.*a: expected 2.*b: expected 4"):
        problems.refuse_if_any()


def test_a_problem_is_added_unless_its_condition_holds_and_shows_the_value_as_python_writes_it():
    problems = Problems()
    problems.unless(True, "a", 1, "a number")
    problems.unless(False, "b", "1", "a number", "remove the quotes")
    assert [str(problem) for problem in problems] == ["b: expected a number, found '1'; remove the quotes"]


def test_no_problems_refuse_nothing():
    Problems().refuse_if_any()


@pytest.mark.parametrize(
    ("name", "known", "meant"),
    [
        ("heterogenous", ["samfed", "heterogeneous"], "heterogeneous"),
        ("xyz", ["samfed", "heterogeneous"], None),
        ("learing_rat", ["learning_rate", "leaning"], "learning_rate"),
        ("epoch", ["epochs", "epocs_"], "epochs"),
        ("LoRA", ["lora", "decoder"], "lora"),
        ("Learning-Rate", ["learning_rate"], "learning_rate"),
        ("aab", ["aac", "aad"], "aad"),
    ],
)
def test_the_most_alike_name_is_meant_whatever_its_capitals_and_hyphens(name, known, meant):
    assert closest(name, known) == closest(name, reversed(known)) == meant
    assert did_you_mean(name, known) == (f"did you mean {meant!r}?" if meant else "")


def test_a_name_less_alike_than_the_cutoff_is_not_meant():
    assert closest("lerning", ["lora_learning_rate"], cutoff=0.8) is None


def test_a_refusal_inside_the_block_is_collected_and_what_comes_after_goes_on():
    problems = Problems()
    with problems.collected():
        raise Refused([Problem("a", found="1", expected="2"), Problem("b", found="3", expected="4")])
    with problems.collected():
        problems.add("c", found="5", expected="6")
    assert [problem.where for problem in problems] == ["a", "b", "c"]


def test_what_is_no_refusal_passes_through_the_block():
    with pytest.raises(KeyError), Problems().collected():
        raise KeyError
