from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from samfed_monai.data.grouping import clusters, draw, subset


def test_images_of_one_group_or_with_the_same_bytes_belong_together():
    hashes = ["a", "b", "c", "a", "e", "f"]
    groups = ["one", "one", "two", "two", None, None]
    assert clusters(hashes, groups) == [[0, 1, 2, 3], [4], [5]]  # 0 and 3 share bytes, so both groups are one


@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from(["x", "y", None])), max_size=20), st.randoms())
def test_clusters_do_not_depend_on_the_order_of_the_input(images, random):
    shuffled = images.copy()
    random.shuffle(shuffled)

    def contents(order):
        found = clusters([digest for digest, _ in order], [group for _, group in order])
        assert sorted(index for cluster in found for index in cluster) == list(range(len(order)))
        return [sorted(map(str, (order[index] for index in cluster))) for cluster in found]

    assert contents(images) == contents(shuffled)


def test_draw_comes_as_near_to_the_target_as_whole_clusters_allow():
    assert draw([5, 5, 5, 5], 10, np.random.default_rng(0)) in ([0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3])
    assert draw([9, 1], 1, np.random.default_rng(0)) == [1]
    assert draw([9, 8], 1, np.random.default_rng(0)) == [1]  # at least one, then the smaller
    assert draw([5], 3, np.random.default_rng(0)) == []  # one always stays behind
    assert draw([5], 3, np.random.default_rng(0), leave=0) == [0]
    assert draw([1, 1], 0, np.random.default_rng(0)) == []


def test_a_smaller_subset_lies_inside_a_larger_one():
    hashes = ["d", "a", "c", "b"]
    assert subset(hashes, 2) == [1, 3]
    assert subset(hashes, 3) == [1, 2, 3]
    assert subset(hashes, None) == subset(hashes, 9) == [0, 1, 2, 3]
