"""Who gets which images: public set, sites, splits, and sites made out of sites."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from samfed_monai.core.errors import Refused
from samfed_monai.data.checks import Facts, check_datalist
from samfed_monai.data.datalist import DataList, Split
from samfed_monai.data.folders import Found
from samfed_monai.data.partitions import (
    clusters,
    divide_sites,
    hold_out,
    iid,
    make_unseen,
    share_problems,
)
from samfed_monai.data.prepare import prepare_folders
from samfed_monai.data.quality_report import report_on
from tests.data.making import options, site
from tests.data.test_prepare import sizes

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


@pytest.mark.parametrize(
    ("validation", "test", "told"),
    [
        (1.5, 0.1, ["--validation: expected a share in [0, 1), found 1.5; for instance 0.1"]),
        (
            -0.1,
            float("nan"),
            [
                "--validation: expected a share in [0, 1), found -0.1; for instance 0.1",
                "--test: expected a share in [0, 1), found nan; for instance 0.1",
            ],
        ),
        (
            0.4,
            0.6,
            ["--validation and --test: expected less than 1 together, found 0.4 and 0.6; for instance 0.1 and 0.1"],
        ),
        (0.0, 0.9, []),
    ],
)
def test_impossible_shares_are_told_by_their_options(validation, test, told):
    assert [str(problem) for problem in share_problems(validation, test)] == told


U, V, T, P = Split.UNLABELLED, Split.VALIDATION, Split.TEST, Split.PUBLIC


def found(name: str, count: int, *, groups: int = 0, masks: bool = True, first: int = 0) -> list[Found]:
    numbers = range(first, first + count)
    group = [f"{name} {n % groups}" if groups else None for n in numbers]
    return [Found(f"{name}/{n}", f"m/{n}" if masks else None, name, g) for n, g in zip(numbers, group, strict=True)]


def facts_of(places, **same: str) -> dict[str, Facts]:
    """Every image has bytes of its own, unless two are declared the same."""
    names = [one.image for ones in places.values() for one in ones]
    return {n: Facts(n, hashlib.sha256(same.get(n.replace("/", "_"), n).encode()).hexdigest()) for n in names}


def counts(places) -> dict[str, list[int]]:
    sites = dict.fromkeys(name for name, _ in places if name)
    return {name: [len(places.get((name, split), [])) for split in (U, V, T)] for name in sites}


def test_a_site_is_cut_into_equal_disjoint_parts_in_every_split():
    places = {("", P): found("p", 3), ("a", U): found("a", 10), ("a", V): found("a", 4, first=10)}
    places["a", T] = found("a", 5, first=14)
    divided, sentences = divide_sites(places, facts_of(places), 2, seed=3)
    assert divided["", P] == places["", P]
    assert counts(divided)["a-1"][:2] == counts(divided)["a-2"][:2] == [5, 2]
    assert sorted(len(divided[f"a-{n}", T]) for n in (1, 2)) == [2, 3]
    images = [one.image for place, ones in divided.items() if place[0] for one in ones]
    assert sorted(images) == sorted(f"a/{n}" for n in range(19))
    assert sentences == []


def test_parts_follow_the_seed_and_not_the_order():
    places = {("a", U): found("a", 20)}
    facts = facts_of(places)
    first = divide_sites(places, facts, 4, seed=0)[0]
    turned = divide_sites({("a", U): places["a", U][::-1]}, facts, 4, seed=0)[0]
    assert {k: {o.image for o in v} for k, v in first.items()} == {k: {o.image for o in v} for k, v in turned.items()}
    assert first != divide_sites(places, facts, 4, seed=1)[0]


def test_groups_stay_together_across_splits_and_short_splits_are_told():
    places = {("a", U): found("a", 8, groups=4), ("a", T): found("a", 1, groups=4, first=8)}
    divided, sentences = divide_sites(places, facts_of(places), 2)
    where = {}
    for (name, _), ones in divided.items():
        for one in ones:
            where.setdefault(one.group, set()).add(name)
    assert all(len(names) == 1 for names in where.values())
    assert sorted(sum(counts(divided)[f"a-{n}"]) for n in (1, 2)) == [4, 5]
    empty = next(n for n in (1, 2) if not divided[f"a-{n}", T])
    assert sentences == [f"a-{empty} has no test images: whole groups did not suffice"]


def test_the_same_bytes_come_to_one_part_and_too_few_groups_are_refused():
    places = {("a", U): found("a", 2)}
    same = facts_of(places, a_0="x", a_1="x")
    with pytest.raises(Refused, match=r"--divide 2: a: expected at least 2, found 1 independent group"):
        divide_sites(places, same, 2)
    with pytest.raises(Refused, match="--divide: expected a whole number >= 1, found 0"):
        divide_sites(places, same, 0)


def test_an_unseen_site_only_measures():
    places = {("a", U): found("a", 2), ("b", U): found("b", 4), ("b", V): found("b", 1, first=4)}
    places["b", U][0] = Found("b/0", None)
    facts = facts_of(places, a_1="x", b_3="x")
    changed, sentences = make_unseen(places, facts, ["b"])
    assert {one.image for one in changed["b", T]} == {"b/1", "b/2", "b/4"}
    assert ("b", U) not in changed
    assert changed["a", U] == places["a", U]
    assert sentences[0] == "1 image of b has no mask: left out"
    assert sentences[1].startswith("1 image of b is also elsewhere")


def test_an_unseen_site_does_not_measure_on_videos_that_others_have():
    places = {("", Split.PUBLIC): found("p", 2, groups=2), ("a", U): found("a", 2), ("b", U): found("b", 3)}
    shared = places["", Split.PUBLIC][0].group
    places["b", U] = [Found("b/0", "m/0", "b", shared), *places["b", U][1:]]
    changed, sentences = make_unseen(places, facts_of(places), ["b"])
    assert {one.image for one in changed["b", T]} == {"b/1", "b/2"}
    assert sentences == ["1 image of b shares a patient or video with others, and the site is to be unseen: left out"]


def test_unseen_sites_are_not_cut():
    places = {("a", U): found("a", 4), ("b", T): found("b", 4)}
    divided, _ = divide_sites(places, facts_of(places), 2, spared=["b"])
    assert list(counts(divided)) == ["a-1", "a-2", "b"]


@pytest.mark.parametrize("spared", [["a-2"], []])
def test_a_part_never_takes_the_name_of_another_site(spared):
    places = {("a", U): found("a", 4), ("a-2", T): found("b", 4)}
    expected = "--divide 2: a: expected names from a-1 to a-2 free for its parts, found a site 'a-2'; rename the site"
    with pytest.raises(Refused, match=expected):
        divide_sites(places, facts_of(places), 2, spared=spared)


def test_bad_unseen_names_are_refused():
    places = {("a", U): found("a", 2, masks=False), ("b", U): found("b", 2)}
    facts = facts_of(places)
    with pytest.raises(Refused, match=r"--unseen: expected one of \['a', 'b'\], found 'c'"):
        make_unseen(places, facts, ["c"])
    with pytest.raises(Refused, match="expected at least one site left to train at, found every site"):
        make_unseen(places, facts, ["a", "b"])
    with pytest.raises(Refused, match="--unseen a: expected some with masks, found no image to measure with"):
        make_unseen(places, facts, ["a"])


def test_a_list_with_a_site_of_only_test_images_is_sound(tmp_path):
    root = tmp_path / "data"
    site(root, "public", 3, 3)
    site(root, "a", 12, 12, first=100)
    site(root, "b", 5, 5, first=200)
    chosen = options(tmp_path, unseen=["b"], divide=2, public="public", validation=0.2, test=0.2)
    made = prepare_folders(root, chosen)
    assert sizes(made.datalist) == {"a-1": [4, 1, 1], "a-2": [4, 1, 1], "b": [0, 0, 5]}
    again = DataList.load(made.path)
    assert again.hash == made.datalist.hash
    assert check_datalist(again, root) == []
    assert "b" in report_on(again, root, tmp_path / "page.html").read_text()
