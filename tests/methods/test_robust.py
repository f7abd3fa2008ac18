"""Robust rules: their common properties, and the numbers of each by hand."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from samfed_monai.core.errors import Refused
from samfed_monai.protocol import UpdateGuard
from tests.methods import needs
from tests.methods.rounds import VALUES, attach, combine, rows, weights_after

#: Minimum number of sites for protection against one of them, by class.
RULES = {
    name: least
    for name, least in {
        "coordinate_median.CoordinateMedian": 3,
        "trimmed_mean.TrimmedMean": 3,
        "krum.Krum": 5,
        "norm_clipping.NormClipping": 2,
        "fedavg.FedAvg": 1,
    }.items()
    if find_spec(f"samfed_monai.methods.{name.partition('.')[0]}")
}
ROBUST = [name for name in RULES if name != "fedavg.FedAvg"]
WILD = st.sampled_from([-1e30, -1e6, 1e6, 1e30])


def rule(name: str, **options: Any) -> Any:
    module, _, kind = name.partition(".")
    return getattr(import_module(f"samfed_monai.methods.{module}"), kind)(**options)


@pytest.mark.parametrize("name", RULES)
@given(st.lists(VALUES, min_size=3, max_size=3), st.lists(st.integers(1, 10**6), min_size=5, max_size=9))
def test_equal_answers_are_kept_exactly(name: str, row: list[float], counts: list[int]) -> None:
    assert combine(rule(name), [row] * len(counts), counts=counts) == row


@pytest.mark.parametrize("name", RULES)
@given(rows(5, 8), st.randoms())
def test_aggregate_does_not_depend_on_order(name: str, answers: list[list[float]], random: Any) -> None:
    if name == "krum.Krum":
        scores = import_module("samfed_monai.methods.krum").krum_scores
        points = {f"{at}": torch.tensor(row, dtype=torch.float64) for at, row in enumerate(answers)}
        apart = {(x, y): float((points[x] - points[y]).square().sum()) for x in points for y in points if x < y}
        ordered = sorted(scores(apart, 1).values())
        assume(all(later > earlier for earlier, later in pairwise(ordered)))  # ties go by name
    one, other = combine(rule(name), random.sample(answers, len(answers))), combine(rule(name), answers)
    # each of at most nine steps rounds values of magnitude <= 174 in float32: 9 * 174 * 1.2e-7 < 1e-3
    assert one == (pytest.approx(other, abs=1e-3) if name in ("norm_clipping.NormClipping", "fedavg.FedAvg") else other)


@pytest.mark.parametrize("name", ROBUST)
@given(rows(4, 8), WILD, st.integers(0, 8))
def test_outlier_moves_model_within_honest_range(name, honest, wild, place):
    found = torch.tensor(combine(rule(name), [*honest[:place], [wild] * 3, *honest[place:]]), dtype=torch.float64)
    least, most = torch.tensor(honest).amin(0), torch.tensor(honest).amax(0)
    if name == "norm_clipping.NormClipping":
        longest = float(torch.tensor(honest, dtype=torch.float64).norm(dim=1).max())
        assert float(found.norm()) <= longest * (1 + 1e-5) + 1e-5
    else:  # a mean of at most seven values of magnitude <= 100 rounds by less than 7 * 100 * 6e-8
        assert bool(((least - 1e-4 <= found) & (found <= most + 1e-4)).all())


@pytest.mark.parametrize("name", ROBUST)
def test_too_few_sites_are_refused_and_keep_model(name, caplog):
    least, kind = RULES[name], name.partition(".")[2]
    found = f"found {least - 1}; choose another rule (docs/security.md says what so many sites allow), or FedAvg"
    expected = f"strategy: expected {least} sites or more, for {kind} to protect, "
    with pytest.raises(Refused, match=re.escape(expected + found)):
        rule(name).require_sites(["site"] * (least - 1))
    rule(name).require_sites(["site"] * least)
    strategy = attach(rule(name), least, [5.0] * 3)
    assert weights_after(strategy, [[1.0] * 3] * (least - 1))["w"].tolist() == [5.0] * 3
    assert caplog.messages == [f"round 1: {least - 1} answers, {kind} needs {least}: model unchanged"]
    assert weights_after(strategy, [[2.0] * 3] * least, round=1)["w"].tolist() == [2.0] * 3


@pytest.mark.parametrize("name", RULES)
def test_update_guard_is_applied_before_rule(name):
    strategy = attach(rule(name), 5, [1.0, 0.0, 0.0], guard=UpdateGuard(limit=2.0))
    assert weights_after(strategy, [[11.0, 0.0, 0.0]] * 5)["w"].tolist() == [3.0, 0.0, 0.0]


def number_and_count(strategy: Any, values: list[float], counts: list[int], dtype: torch.dtype) -> tuple[Any, ...]:
    """One number of this type and an integer after a round."""
    start = {"w": torch.zeros(1, dtype=dtype), "count": torch.tensor(0)}
    sent = [
        {"w": torch.tensor([w], dtype=dtype), "count": torch.tensor(c)} for w, c in zip(values, counts, strict=True)
    ]
    after = weights_after(attach(strategy, len(sent), start), sent)
    return after["w"].item(), after["count"].item(), after["w"].dtype


@needs("coordinate_median")
def test_median_matches_hand_computed_values():
    def median(answers: list[list[float]], **options: Any) -> list[float]:
        return combine(rule("coordinate_median.CoordinateMedian"), answers, **options)

    assert median([[1.0, 5.0, 9.0], [2.0, -4.0, 9.0], [300.0, 6.0, -9.0]]) == [2.0, 5.0, 9.0]
    assert median([[1.0, 0, 0], [2.0, 0, 0], [4.0, 0, 0], [1e30, 0, 0]]) == [3.0, 0.0, 0.0]
    assert median([[1.0] * 3, [2.0] * 3, [9.0] * 3], counts=[1, 1, 10**7]) == [2.0] * 3, "images do not weigh"
    assert median([[1.0] * 3, [3.0] * 3, [2.0] * 3, [1e30] * 3, [1e30] * 3]) == [3.0] * 3, "two of five are wild"
    half = number_and_count(rule("coordinate_median.CoordinateMedian"), [1, 2, 8, 4], [7, 9, 99, 8], torch.float16)
    assert half == (3.0, 8, torch.float16)


@needs("trimmed_mean")
def test_trimmed_mean_matches_hand_computed_values():
    answers = [[1.0, -1e30, 0.0], [2.0, 4.0, 0.0], [6.0, 2.0, 0.0], [1e30, 8.0, 0.0]]
    assert combine(rule("trimmed_mean.TrimmedMean"), answers) == [4.0, 3.0, 0.0]
    half = number_and_count(rule("trimmed_mean.TrimmedMean"), [7, 10**9, 9, 8], [7, 10**9, 9, 8], torch.bfloat16)
    assert half == (8.5, 8, torch.bfloat16)
    trimmed: Callable[[int, float], int] = import_module("samfed_monai.methods.trimmed_mean").trimmed
    left_out = {(2, 0.25): 0, (3, 0.25): 1, (4, 0.25): 1, (5, 0.25): 2, (8, 0.25): 2, (8, 0.1): 1}
    left_out |= {(9, 0.49): 4, (8, 0.49): 3, (25, 0.28): 7}
    assert {given_: trimmed(*given_) for given_ in left_out} == left_out, "sites, part, and how many at either end"


LINE = {"a": 0.0, "b": 1.0, "c": 3.0, "d": 6.0, "e": 100.0}  # on a line; squared distances are easy


@needs("krum")
def test_krum_matches_hand_computed_values(caplog):
    scores = import_module("samfed_monai.methods.krum").krum_scores
    apart = {(x, y): (LINE[x] - LINE[y]) ** 2 for x in LINE for y in LINE if x < y}
    # five sites, one of them faulty: sums over the two nearest others
    assert scores(apart, 1) == {"a": 1 + 9, "b": 1 + 4, "c": 4 + 9, "d": 9 + 25, "e": 94**2 + 97**2}
    answers = [[value, 0.0, 0.0] for value in LINE.values()]
    found = [combine(rule("krum.Krum", keep=keep), answers)[0] for keep in (1, 2, None)]
    assert found == [1.0, 0.5, 2.5], "the best site; the mean of two; of all but the faulty"
    honest = [[float(at), 0.0, 0.0] for at in range(5)]
    two = combine(rule("krum.Krum", faulty=2), [*honest, [1e6] * 3, [1e6] * 3])
    assert two == [2.0, 0.0, 0.0], "two that agree take seven sites"
    for dtype in (torch.float32, torch.bfloat16):
        assert number_and_count(rule("krum.Krum"), list(LINE.values()), list(range(5)), dtype) == (2.5, 1, dtype)
    caplog.set_level("INFO")
    combine(rule("krum.Krum", keep=2), answers)
    assert caplog.messages == ["left out: s02, s03, s04"]


@needs("krum")
@pytest.mark.parametrize(
    ("options", "least"), [({}, 5), ({"faulty": 2}, 7), ({"faulty": 1, "keep": 8}, 9), ({"faulty": 1, "keep": None}, 5)]
)
def test_krum_minimum_number_of_sites(options, least):
    assert rule("krum.Krum", **options).least_sites == least


@given(rows(4, 8), st.sampled_from([-1e6, 1e6]), st.integers(0, 8))
@needs("krum")
def test_krum_selects_honest_site(honest, wild, place):
    assert combine(rule("krum.Krum", keep=1), [*honest[:place], [wild] * 3, *honest[place:]]) in honest


@needs("norm_clipping")
def test_norm_clipping_shortens_steps_to_lower_median(caplog):
    caplog.set_level("INFO")
    # lengths 1, 2, 4, 800: the limit is 2
    answers = [[1.0, 0, 0], [0, 2.0, 0], [0, 4.0, 0], [0, 0, -800.0]]
    assert combine(rule("norm_clipping.NormClipping"), answers) == pytest.approx([0.25, 1.0, -0.5])
    assert caplog.messages == ["s02: a step of 4 was shortened to 2", "s03: a step of 800 was shortened to 2"]
    assert combine(rule("norm_clipping.NormClipping", factor=2.0), answers) == pytest.approx([0.25, 1.5, -1.0])
    plain = combine(rule("norm_clipping.NormClipping"), [[1.0, 0, 0], [0, 1.0, 0]], counts=[1, 3])
    assert plain == [0.25, 0.75, 0.0], "images weigh as in FedAvg"
    half = number_and_count(rule("norm_clipping.NormClipping"), [1, 1, 1], [3, 10**9, 4], torch.float16)
    assert half == (1.0, 4, torch.float16)


@needs("norm_clipping")
def test_norm_clipping_median_runs_over_rounds():
    strategy = attach(rule("norm_clipping.NormClipping", window=3), 2)
    weights_after(strategy, [[1.0, 0, 0], [1.0, 0, 0]])
    weights_after(strategy, [[2.0, 0, 0], [2.0, 0, 0]], round=1)
    # both step by 8; medians are 1, 1, 8, of which the middle one is 1
    assert weights_after(strategy, [[10.0, 0, 0], [10.0, 0, 0]], round=2)["w"].tolist() == [3.0, 0.0, 0.0]
    assert strategy.state_dict()["median_lengths"].tolist() == [1.0, 1.0, 8.0]
    fresh = attach(strategy, 2)
    assert weights_after(fresh, [[10.0, 0, 0], [10.0, 0, 0]])["w"].tolist() == [10.0, 0.0, 0.0], "a new run begins anew"
    precise = attach(rule("norm_clipping.NormClipping"), 2)
    weights_after(precise, [[0.1, 0.2, 0.0], [0.1, 0.2, 0.0]])
    length = torch.tensor([0.1, 0.2], dtype=torch.float32).double().norm().item()
    assert precise.state_dict()["median_lengths"].tolist() == pytest.approx([length], rel=1e-15)


@pytest.mark.parametrize("name", ROBUST)
def test_defaults(name):
    expected = {"krum.Krum": {"faulty": 1, "keep": None}, "norm_clipping.NormClipping": {"factor": 1.0, "window": 5}}
    expected |= {"trimmed_mean.TrimmedMean": {"trim": 0.25}}
    assert vars(rule(name)).items() >= expected.get(name, {}).items()
