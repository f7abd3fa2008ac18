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


def test_refused_lists_each_problem_once():
    hinted = Problem("train.json -> loss#alpha", "'0.5' (str)", "a number", "remove the quotes")
    error = Refused(iter([Problem("a.png", found="0 bytes", expected="an image"), hinted, hinted]))
    assert str(error).splitlines() == [
        "refused: 2 problems",
        "  - a.png: expected an image, found 0 bytes",
        "  - train.json -> loss#alpha: expected a number, found '0.5' (str); remove the quotes",
    ]
    assert [problem.where for problem in error.problems] == ["a.png", "train.json -> loss#alpha"]


def of_files(count: int, where: str = "a b/{}.png", found: str = "'{}' also as c d/{}.png") -> list[Problem]:
    return [Problem(where.format(n, n), found.format(n, n), "each once", "move one away") for n in range(count)]


@pytest.mark.parametrize(
    ("problems", "lines"),
    [
        (of_files(3), [str(problem) for problem in of_files(3)]),
        (
            of_files(105),
            [
                "105 times, such as a b/0.png, a b/1.png and a b/2.png; the first: expected each once, found '0' "
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
def test_similar_problems_are_folded_with_count_and_examples(problems, lines):
    found = folded(problems)
    assert (len(found) if isinstance(lines, int) else found) == lines
    error = Refused(problems)
    assert error.problems == problems, "programs see every one"
    assert str(error).splitlines() == [f"refused: {len(problems)} problems", *(f"  - {line}" for line in found)]


@pytest.mark.parametrize(
    ("error", "code", "builtin", "text"),
    [
        (
            Refused([Problem("a", found="1", expected="2")]),
            2,
            ValueError,
            "refused: 1 problem\n  - a: expected 2, found 1",
        ),
        (Stopped("no site answered"), 3, RuntimeError, "stopped: no site answered"),
        (Stopped("disk full", resume="make room"), 3, RuntimeError, "stopped: disk full\n  to continue: make room"),
    ],
)
def test_errors_have_text_exit_code_and_builtin_base(error, code, builtin, text):
    assert (str(error), int(error.exit_code)) == (text, code)
    assert isinstance(error, SamFedError)
    assert isinstance(error, builtin)


def test_exit_codes_match_documentation():
    codes = {"DONE": 0, "FAILED": 1, "REFUSED": 2, "STOPPED": 3, "INTERRUPTED": 130}
    assert {code.name: int(code) for code in ExitCode} == codes


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
def test_closest_name_is_suggested_ignoring_case_and_hyphens(name, known, meant):
    assert closest(name, known) == closest(name, reversed(known)) == meant
    assert did_you_mean(name, known) == (f"did you mean {meant!r}?" if meant else "")
    assert closest("lerning", ["lora_learning_rate"], cutoff=0.8) is None


def test_problems_are_collected_in_order_and_refused_together():
    problems = Problems()
    problems.refuse_if_any()
    problems.unless(True, "none", 1, "a number")
    problems.unless(False, "a", "1", "a number", "remove the quotes")
    with problems.collected():
        raise Refused([Problem("b", found="1", expected="2")])
    with problems.collected():
        problems.add("c", found="3", expected="4", hint="try 4")
    problems.extend([Problem("d", found="5", expected="6")])
    assert len(problems) == 4
    with pytest.raises(Refused) as error:
        problems.refuse_if_any()
    assert [str(problem) for problem in error.value.problems] == [
        "a: expected a number, found '1'; remove the quotes",
        "b: expected 2, found 1",
        "c: expected 4, found 3; try 4",
        "d: expected 6, found 5",
    ]


def test_other_exceptions_pass_through_collected_block():
    with pytest.raises(KeyError), Problems().collected():
        raise KeyError
