"""Ranks, Friedman's statistic and Nemenyi's critical difference in numbers that one can compute by hand."""

import io

import numpy as np
import pytest
from PIL import Image

from study.ranks import (
    Against,
    Ranking,
    against,
    complete_blocks,
    critical_difference,
    friedman,
    mean_ranks,
    ranking,
    ranks_figure,
)


def test_highest_score_has_rank_1_and_ties_share_rank():
    table = np.array([[0.9, 0.8, 0.7], [0.8, 0.8, 0.9], [0.5, 0.5, 0.5]])
    assert mean_ranks(table) == pytest.approx([(1 + 2.5 + 2) / 3, (2 + 2.5 + 2) / 3, (3 + 1 + 2) / 3])


def test_friedman_matches_hand_calculation_with_and_without_ties():
    # ranks 1, 2, 3 in each of 4 blocks: 12 / (4 * 3 * 4) * (4² + 8² + 12²) - 3 * 4 * 4 = 8 = N (k - 1)
    statistic, p = friedman(np.array([[0.9, 0.8, 0.7]] * 4))
    assert statistic == pytest.approx(8.0)
    assert p == pytest.approx(np.exp(-4))  # chi-square with 2 degrees of freedom
    table = np.array([[0.9, 0.8, 0.7], [0.8, 0.9, 0.7], [0.9, 0.9, 0.7]])
    assert mean_ranks(table) == pytest.approx([1.5, 1.5, 3.0])
    assert friedman(table)[0] == pytest.approx(4.5 / (11 / 12))
    assert friedman(np.full((4, 3), 0.8)) == (0.0, 1.0), "rows that are all equal do not differ"


@pytest.mark.parametrize(("rows", "q"), [(2, 1.960), (3, 2.343), (5, 2.728), (10, 3.164)])
def test_critical_difference_matches_published_quantiles(rows, q):
    # Demšar 2006, table 5 (a), alpha 0.05
    assert critical_difference(rows, 14) == pytest.approx(q * np.sqrt(rows * (rows + 1) / (6 * 14)), abs=2e-3)


def test_rows_are_compared_block_by_block():
    base = dict.fromkeys(range(6), 0.5)
    rises = {block: 0.5 + 0.01 * (block + 1) for block in base}  # signed ranks all positive: p = 2 / 2^6
    mixed = {0: 0.51, 1: 0.48, 2: 0.53, 3: 0.54, 4: 0.55, 5: 0.56}  # rank 2 alone negative: W = 2, p = 2 * 3 / 2^6
    found = against({"base": base, "same": base, "mixed": mixed, "rises": rises, "other": {9: 1.0}}, "base")
    assert list(found) == ["rises", "mixed", "same"]
    assert found["rises"] == Against(6, 6, pytest.approx(0.035), pytest.approx(3 * 2 / 64))
    assert found["mixed"] == Against(5, 6, pytest.approx(0.17 / 6), pytest.approx(2 * 6 / 64))
    assert found["same"] == Against(0, 6, 0.0, 1.0)


def test_rows_without_common_blocks_are_reported_missing():
    scores = {
        "a": {("x", 0): 0.9, ("y", 0): 0.9, ("x", 1): 0.9},
        "b": {("x", 0): 0.8, ("y", 0): 0.8},
        "c": {("x", 0): 0.7, ("y", 0): 0.95, ("x", 1): 0.7},
        "late": {("x", 1): 0.99},
    }
    assert complete_blocks(scores) == (["a", "b", "c"], [("x", 0), ("y", 0)])
    found = ranking(scores)
    assert found.ranks == {"a": 1.5, "c": 2.0, "b": 2.5}
    assert found.missing == {"late": 2}
    assert found.statistic == pytest.approx(1.0)
    assert found.critical_difference == pytest.approx(critical_difference(3, 2))
    assert found.beyond("a") == []


def test_complete_blocks_maximise_number_of_scores():
    late = {"a": {0: 1.0, 1: 1.0, 2: 1.0}, "b": {0: 1.0, 1: 1.0, 2: 1.0}, "late": {0: 2.0}}
    assert complete_blocks(late) == (["a", "b"], [0, 1, 2])  # 2 x 3 before 3 x 1
    once = {"a": {1: 1.0, 0: 1.0}, "b": {0: 1.0}}
    assert complete_blocks(once) == (["a", "b"], [0])  # 2 x 1, as many as 1 x 2
    parted = {"a": {0: 1.0, 1: 1.0, 2: 1.0}, "b": {1: 1.0, 2: 1.0, 3: 1.0}, "c": {2: 1.0, 1: 1.0}}
    assert complete_blocks(parted) == (["a", "b", "c"], [1, 2])


@pytest.mark.parametrize("scores", [{}, {"a": {}}, {"a": {}, "b": {}}])
def test_empty_scores_have_no_ranking(scores):
    assert ranking(scores) == Ranking(missing=dict.fromkeys(scores, 0))


def test_two_rows_or_one_block_are_ranked_and_not_tested():
    two = ranking({"a": {0: 1.0, 1: 1.0}, "b": {0: 0.5, 1: 2.0}})
    assert (two.ranks, two.statistic, two.p, two.critical_difference) == ({"a": 1.5, "b": 1.5}, None, None, None)
    one = ranking({"a": {0: 1.0}, "b": {0: 0.5}, "c": {0: 0.7}})
    assert (list(one.ranks), one.statistic, one.beyond("a")) == (["a", "c", "b"], None, [])


def test_figure_is_reproducible_and_grows_with_rows():
    few = ranking({name: dict.fromkeys(range(20), value) for name, value in {"a": 3.0, "b": 2.0, "c": 1.0}.items()})
    assert few.beyond("a") == ["b", "c"]
    many = ranking({f"row {index}": {0: index, 1: index} for index in range(12)})
    heights = [Image.open(io.BytesIO(ranks_figure(found))).height for found in (few, many)]
    assert heights[0] < heights[1]
    assert ranks_figure(few) == ranks_figure(few)
