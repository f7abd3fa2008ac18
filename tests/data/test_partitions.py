from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from samfed_monai.core.errors import Refused
from samfed_monai.data.grouping import clusters
from samfed_monai.data.partitions import appearance_classes, dirichlet, hold_out, iid, size_classes

collections = st.lists(
    st.tuples(st.integers(0, 30), st.sampled_from([None, "a", "b", "c", "d"]), st.booleans()), min_size=8, max_size=60
)


def divided(images):
    hashes = [f"{digest:04d}" for digest, _, _ in images]
    groups = [group for _, group, _ in images]
    return hashes, groups, clusters(hashes, groups)


def assert_exact_and_grouped(parts, together, count):
    assert sorted(index for part in parts for index in part) == list(range(count))
    for cluster in together:
        assert sum(not set(cluster).isdisjoint(part) for part in parts) == 1


@given(collections, st.integers(1, 4), st.integers(0, 5))
def test_iid_is_exact_grouped_and_deterministic(images, sites, seed):
    _, _, together = divided(images)
    if len(together) < sites:
        with pytest.raises(Refused, match="ask for fewer sites"):
            iid(together, sites, seed=seed)
        return
    parts = iid(together, sites, seed=seed)
    assert_exact_and_grouped(parts, together, len(images))
    assert all(parts)
    assert parts == iid(together, sites, seed=seed)


@given(collections, st.integers(1, 3), st.sampled_from([0.1, 1.0, 100.0]), st.integers(0, 5))
def test_dirichlet_is_exact_grouped_and_deterministic(images, sites, alpha, seed):
    _, _, together = divided(images)
    classes = [digest % 3 for digest, _, _ in images]
    try:
        parts = dirichlet(together, classes, sites, alpha=alpha, seed=seed)
    except Refused:  # too few clusters, or too uneven for so small an alpha
        return
    assert_exact_and_grouped(parts, together, len(images))
    assert all(parts)
    assert parts == dirichlet(together, classes, sites, alpha=alpha, seed=seed)


@given(collections, st.sampled_from([(0.1, 0.1), (0.0, 0.3), (0.4, 0.4)]), st.integers(0, 5))
def test_held_out_splits_are_exact_grouped_labelled_and_deterministic(images, shares, seed):
    hashes, groups, together = divided(images)
    labelled = [has for _, _, has in images]
    parts = hold_out(hashes, groups, labelled, shares, seed=seed)
    assert_exact_and_grouped(parts, together, len(images))
    assert all(labelled[index] for part in parts[:-1] for index in part)
    assert parts[-1]
    assert parts == hold_out(hashes, groups, labelled, shares, seed=seed)


def test_the_order_of_the_files_does_not_matter():
    hashes = [f"{number:04d}" for number in range(40)]
    order = np.random.default_rng(0).permutation(40)
    one = hold_out(hashes, [None] * 40, [True] * 40, [0.2, 0.1], seed=3)
    other = hold_out([hashes[i] for i in order], [None] * 40, [True] * 40, [0.2, 0.1], seed=3)
    assert [len(part) for part in one] == [8, 4, 28]
    for part, shuffled in zip(one, other, strict=True):
        assert {hashes[i] for i in part} == {hashes[order[i]] for i in shuffled}


def test_few_labels_are_divided_in_proportion():
    hashes = [f"{number:03d}" for number in range(100)]
    parts = hold_out(hashes, [None] * 100, [number < 12 for number in range(100)], [0.1, 0.2], seed=0)
    assert [len(part) for part in parts] == [4, 8, 88]


@pytest.mark.parametrize("shares", [(-0.1, 0.1), (0.5, 0.5), (1.0, 0.0)])
def test_impossible_shares_are_refused(shares):
    with pytest.raises(Refused, match=r"in \[0, 1\), together < 1"):
        hold_out(["a"], [None], [True], shares)


def test_small_alpha_makes_sites_unlike_and_large_alpha_alike():
    hashes = [f"{number:04d}" for number in range(400)]
    classes = [number % 4 for number in range(400)]

    def spread(alpha):
        parts = dirichlet(clusters(hashes, [None] * 400), classes, 4, alpha=alpha, seed=1)
        shares = [np.bincount([classes[i] for i in part], minlength=4) / len(part) for part in parts]
        return float(np.std(shares, axis=0).mean())

    assert spread(100.0) < 0.05 < 0.15 < spread(0.2)


def test_alpha_must_be_positive():
    with pytest.raises(Refused, match="alpha: expected a positive number, found 0"):
        dirichlet([[0], [1]], [0, 1], 2, alpha=0)


def test_size_classes_are_equally_full():
    assert size_classes([0.5, 0.1, 0.3, 0.2, 0.4], bins=5) == [4, 0, 2, 1, 3]


def test_appearance_classes_put_like_colours_together():
    colours = [(200, 150, 140), (90, 60, 50), (201, 151, 139), (91, 59, 52)]
    first, second, third, fourth = appearance_classes(colours, bins=2)
    assert first == third != second == fourth
