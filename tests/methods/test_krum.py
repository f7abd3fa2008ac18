"""Krum and Multi-Krum: scores by hand, who is left out, and how many sites it takes."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from samfed_monai.core.errors import Refused
from samfed_monai.methods.krum import Krum, krum_scores
from tests.methods.robust import VALUES, answered, attached, combined, rows

LINE = {"a": 0.0, "b": 1.0, "c": 3.0, "d": 6.0, "e": 100.0}  # on a line; squared distances are easy


def distances(points: dict[str, float]) -> dict[tuple[str, str], float]:
    names = sorted(points)
    return {(x, y): (points[x] - points[y]) ** 2 for at, x in enumerate(names) for y in names[at + 1 :]}


def test_scores_are_sums_over_the_nearest_others():
    # five sites, one of them faulty: the two nearest
    found = krum_scores(distances(LINE), 1)
    assert found == {"a": 1 + 9, "b": 1 + 4, "c": 4 + 9, "d": 9 + 25, "e": 94**2 + 97**2}


def test_krum_is_the_best_site_and_multi_krum_the_mean_of_all_but_the_faulty():
    answers = [[value, 0.0, 0.0] for value in LINE.values()]
    assert combined(Krum(keep=1), answers) == [1.0, 0.0, 0.0]
    assert combined(Krum(keep=2), answers) == [0.5, 0.0, 0.0]
    assert combined(Krum(), answers) == [2.5, 0.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_integers_are_those_of_the_best_site_and_types_stay(dtype):
    start = {"w": torch.zeros(1, dtype=dtype), "count": torch.tensor(0)}
    answers = [{"w": torch.tensor([w], dtype=dtype), "count": torch.tensor(c)} for c, w in enumerate(LINE.values())]
    after = answered(attached(Krum(), 5, start), answers)
    assert (after["count"].item(), after["w"].item(), after["w"].dtype) == (1, 2.5, dtype)


@settings(max_examples=60, deadline=None)
@given(st.lists(VALUES, min_size=3, max_size=3), st.integers(5, 9), st.sampled_from([None, 1, 3]))
def test_equal_weights_stay_equal_to_the_last_bit(row, sites, keep):
    assert combined(Krum(keep=keep), [row] * sites) == row


@settings(max_examples=60, deadline=None)
@given(rows(5, 8), st.randoms())
def test_order_does_not_matter(answers, random):
    points = {f"{at}": torch.tensor(row, dtype=torch.float64) for at, row in enumerate(answers)}
    apart = {(x, y): float((points[x] - points[y]).square().sum()) for x in points for y in points if x < y}
    scores = sorted(krum_scores(apart, 1).values())
    assume(all(later > earlier for earlier, later in pairwise(scores)))  # ties go by name
    assert combined(Krum(), random.sample(answers, len(answers))) == combined(Krum(), answers)


@settings(max_examples=60, deadline=None)
@given(rows(4, 8), st.sampled_from([-1e6, 1e6]), st.integers(0, 8))
def test_one_wild_site_is_left_out(honest, wild, place):
    answers = [*honest[:place], [wild] * 3, *honest[place:]]
    assert combined(Krum(keep=1), answers) in honest
    found = torch.tensor(combined(Krum(), answers))
    least, most = torch.tensor(honest).amin(0), torch.tensor(honest).amax(0)
    assert bool(((least - 1e-4 <= found) & (found <= most + 1e-4)).all())


def test_two_wild_sites_that_agree_take_seven_sites():
    honest = [[float(at), 0.0, 0.0] for at in range(5)]
    assert combined(Krum(faulty=2), [*honest, [1e6] * 3, [1e6] * 3]) == [2.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("options", "sites", "least"), [({}, 4, 5), ({"faulty": 2}, 6, 7), ({"faulty": 1, "keep": 8}, 8, 9)]
)
def test_fewer_sites_than_it_takes_are_refused(options, sites, least):
    with pytest.raises(Refused, match=f"expected at least {least}, for Krum to protect, found {sites} sites"):
        Krum(**options).require_sites(["site"] * sites)
    Krum(**options).require_sites(["site"] * least)


def test_who_is_left_out_is_told(caplog):
    caplog.set_level("INFO")
    combined(Krum(keep=2), [[value, 0.0, 0.0] for value in LINE.values()])
    assert caplog.messages == ["left out: s02, s03, s04"]
    assert (Krum().faulty, Krum().keep, Krum().least_sites) == (1, None, 5)
