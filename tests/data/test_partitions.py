"""Who gets which images: groups and the files that name them, public set, sites, splits, sites made out of sites."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from samfed_monai.core.errors import Refused
from samfed_monai.core.text import normal
from samfed_monai.data.datalist import Split
from samfed_monai.data.folders import Found
from samfed_monai.data.partitions import (
    Groups,
    clusters,
    divide_sites,
    draw,
    hold_out,
    iid,
    make_unseen,
    share_problems,
    subset,
)


def test_images_sharing_group_or_bytes_form_one_cluster():
    together = clusters(["a", "b", "c", "a", "e", "f"], ["one", "one", "two", "two", None, None])
    assert together == [[0, 1, 2, 3], [4], [5]]  # 0 and 3 share bytes, so both groups are one
    with pytest.raises(Refused, match="at least one group per site, found 4 sites for 3 independent groups of images"):
        iid(together, 4)


@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from(["x", "y", None])), max_size=20), st.randoms())
def test_clusters_are_independent_of_input_order(images, random):
    shuffled = images.copy()
    random.shuffle(shuffled)

    def contents(order):
        found = clusters([digest for digest, _ in order], [group for _, group in order])
        assert sorted(index for cluster in found for index in cluster) == list(range(len(order)))
        return [sorted(map(str, (order[index] for index in cluster))) for cluster in found]

    assert contents(images) == contents(shuffled)


def test_draw_is_nearest_to_target_and_smaller_subset_is_contained_in_larger_one():
    assert draw([5, 5, 5, 5], 10, np.random.default_rng(0)) in ([0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3])
    assert draw([9, 1], 1, np.random.default_rng(0)) == [1]
    assert draw([9, 8], 1, np.random.default_rng(0)) == [1]  # at least one, then the smaller
    assert draw([5], 3, np.random.default_rng(0)) == []  # one always stays behind
    assert draw([5], 3, np.random.default_rng(0), leave=0) == [0]
    assert draw([1, 1], 0, np.random.default_rng(0)) == []
    hashes = ["d", "a", "c", "b"]
    assert subset(hashes, 2) == [1, 3]
    assert subset(hashes, 3) == [1, 2, 3]
    assert subset(hashes, None) == subset(hashes, 9) == [0, 1, 2, 3]


def table(folder: Path, content: str | bytes, column: str = "group", **how: dict[str, str]) -> Groups:
    """What a CSV file says."""
    (folder / "g.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    return Groups(folder / "g.csv", column, **how)


DECOMPOSED = unicodedata.normalize("NFD", "Süd/images/1.jpg")


@pytest.mark.parametrize(
    ("rows", "groups"),
    [
        (
            "a/images/1.jpg,x\nb/images/1.jpg,y\nb/images/2.jpg,\n",  # paths match from their ends
            {"somewhere/a/images/1.jpg": "x", "b/images/1.jpg": "y", "images/2.jpg": None, "b/images/3.jpg": None}
            | {"c/images/1.jpg": None},  # another hospital's image of that name
        ),
        ("ISIC_0000001,L7\n", {"any/ISIC_0000001.jpg": "L7"}),
        ("ISIC_0000001.jpg,L7\n", {"any/ISIC_0000001.png": "L7"}),
        ("A0.frame0,x\nA0.frame1,y\n", {"A0.frame0.png": "x", "A0.frame1.png": "y", "A0.frame2.png": None}),
        ("1.2.840.113619.2,x\n", {"images/1.2.840.113619.2.jpg": "x"}),
        (f"{DECOMPOSED},x\n", {"Süd/images/1.jpg": "x"}),
        ("C:\\Süd\\images\\1.jpg,x\nC:\\b\\images\\1.jpg,y\n", {DECOMPOSED: "x"}),
    ],
)
def test_group_names_are_matched_from_path_end(tmp_path, rows, groups):
    assert {image: table(tmp_path, f"\ufeffimage,group\n{rows}").group_of(image) for image in groups} == groups


def test_group_row_may_name_volume_of_slices(tmp_path):
    rows = "image,patient\na/images/ed,one\na/images/es,one\nb/images/ed,two\nes_0001,three\n"
    groups = table(tmp_path, rows, "patient", volumes={})
    assert groups.group_of("a/images/ed/ed_0001.png") == "one"
    assert groups.group_of("b/images/ed/ed_0007.png") == "two"
    assert groups.group_of("a/images/es/es_0001.png") == "three", "a row of the slice itself goes before its volume's"
    assert groups.group_of("c/images/ed/ed_0001.png") is None
    assert table(tmp_path, rows, "patient").group_of("a/images/ed/ed_0001.png") is None
    rows = "image,patient\na\\images\\p1\\t1.nii.gz,one\np2/t1.nii,two\nt2.nii.gz,three\n"  # as they are called
    volumes = {f"a/images/{p}_{t}": f"a/images/{p}/{t}.nii.gz" for p in ("p1", "p2", "p3") for t in ("t1", "t2")}
    groups = table(tmp_path, rows, "patient", volumes=volumes)
    slices = [f"{folder}/{folder[9:]}_0001.png" for folder in volumes]
    assert [groups.group_of(each) for each in slices] == ["one", "three", "two", "three", None, "three"]
    assert "1 name is in g.csv without a folder, for several images each" in groups.sentences(slices)[1]


def test_ungrouped_images_and_ambiguous_names_are_counted(tmp_path):
    groups = table(tmp_path, "id,patient\n1,x\n2.png,y\np1/3,z\n4,\n", "patient")
    images = [f"a/p{folder}/{number}.png" for folder in (1, 2) for number in range(1, 5)]
    [lacking, several] = groups.sentences([*images, *images])
    assert lacking == "3 of 8 images have no group in g.csv"
    assert several.startswith("2 names are in g.csv without a folder, for several images each, such as '1': all th")
    assert groups.sentences(["a/1.png"]) == ["3 names are in g.csv without a matching image, such as '2.png'"]
    [sentence] = table(tmp_path, "id,group\n1,N/A\n2,na\n3,x\n").sentences(["1.png", "2.png", "3.png"])
    assert sentence.startswith("2 images have groups that may mean none, such as 'N/A', and stay together")
    for pair in ("01 1", "3 3,0", "P1 p1", "P_07 p-7", "a.B a.b", "02-Mrz x", "Feb-01 x", "2.Mai.24 x"):
        first, second = pair.split()
        [sentence] = table(tmp_path, f"id;group\n1;{first}\n2;{second}\n").sentences(["1.png", "2.png"])
        alike = f"{first!r} and {second!r} are different groups in g.csv: if they are one, write them alike"
        assert sentence.startswith(
            alike if second != "x" else f"a group in g.csv is {first!r}: if Excel made this date"
        )
    clean = table(tmp_path, "id,group\n1,1-2\n2,12\n3,1.5\n4,15\n5,10\n6,1\n7,May\n")
    assert clean.sentences([f"{number}.png" for number in range(1, 8)]) == []


def test_unmatched_or_conflicting_groups_are_refused(tmp_path):
    with pytest.raises(Refused, match=r"expected one group, found \['x', 'y'\] for 1.jpg"):
        table(tmp_path, "image,group\na/1.jpg,x\nb/1.jpg,y\n").group_of("1.jpg")
    rows = "id,group,empty\nfirst,,\nframe 7,x,\n"
    with pytest.raises(Refused, match=r"images like 'a/7\.png', found only groups for names like 'frame 7'; add"):
        table(tmp_path, rows).sentences(["a/7.png"])
    with pytest.raises(Refused, match=r"images like 'first\.png', found nothing in the column 'empty'"):
        table(tmp_path, rows, "empty").sentences(["first.png"])


CODES = ["utf-8", "utf-8-sig", "cp1252", "utf-16", "utf-32"]
TITLES = ["image", "IMAGE_ID", " Image ID ", "isic-id", "FileName", '"image"']


@given(
    *(st.sampled_from(each) for each in (CODES, [",", ";", "\t", "|"], ["\n", "\r\n", "\r"], TITLES)),
    st.lists(st.sampled_from(["", "sep"]), max_size=1),
    st.booleans(),
)
def test_csv_is_read_in_common_encodings_and_dialects(tmp_path_factory, code, comma, end, title, first, blank):
    rows = [[title, "age", "Group"], ["a/1.png", '"a, ""b"";\n|"', "Ü"]]
    rows += [['"b\\1.png"', "", '"G, ;2"'], ["c/1.png", "", ""]]
    rows = [row for each in rows for row in ([["", "", ""], [" "], each] if blank else [each])]
    lines = [f"sep={comma}"] if "sep" in first else []
    path = tmp_path_factory.mktemp("csv") / "g.csv"
    path.write_bytes(end.join([*lines, *(comma.join(row) for row in rows), ""]).encode(code))
    assert [Groups(path, "group").group_of(f"{folder}/1.png") for folder in "abc"] == ["Ü", "G, ;2", None]


@pytest.mark.parametrize(
    ("rows", "groups"),
    [
        ("1.png,G0\n2.png,G0 \n3.png,\u200bG0\n4.png,\u00a0g0", ["G0", "G0", "G0", "g0"]),  # case is kept
        ("1.png,M\u00fc\n2.png,Mu\u0308\n3.png,M\u00fc  x\n4.png,M\u00fc\u2009x", ["Mü", "Mü", "Mü x", "Mü x"]),
        ('1.png,"=""001"""\n2.png,="001"\n3.png,001\n4.png,1', ["001", "001", "001", "1"]),
        ("1.png,7\n2.png,7.0\n3.png,7.5\n4.png,7.00", ["7", "7", "7.5", "7"]),
        ("1.png,nan\n2.png,#N/A\n3.png,NULL\n4.png,NA", [None, None, None, "NA"]),
        ("1.png,x\n2.png,x,,\n3.png\n1.png,x", ["x", "x", None, None]),
        ("1.0,x\n2 ,y\n\ufeff3,z\nb/4,w", ["x", "y", "z", None]),  # names as well
    ],
)
def test_group_names_are_normalized(tmp_path, rows, groups):
    assert [table(tmp_path, f"image,group\n{rows}\n").group_of(f"a/{number}.png") for number in range(1, 5)] == groups


@given(st.text())
def test_normal_is_idempotent(text):
    assert normal(normal(text)) == normal(text)


@given(st.text(), st.sampled_from(["", " ", "\u200b", "\u00a0\n", "\ufeff"]), st.sampled_from(["NFC", "NFD"]))
def test_invisible_characters_do_not_change_group(text, blank, form):
    groups = [f"x{text}", blank + unicodedata.normalize(form, f"x{text}") + blank, "y"]
    assert clusters(["a", "b", "c"], groups) == [[0, 1], [2]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("image,sequence\n1.jpg,x\n", r"found the columns \['image', 'sequence'\] \(utf-8, separated by commas\); nam"),
        ("sep=;\nimage,group\n", r"found the columns \['image,group'\] \(utf-8, separated by semicolons\)"),
        ("image\tsequence\n".encode("utf-16"), r"\['image', 'sequence'\] \(utf-16, separated by tabs\)"),
        ("image,group,Group\n1,x,y\n", r"each once, found the columns \['image', 'group', 'Group'\]"),
        ("image,group\n1.jpg,Smith, J\n", r"line 2: expected 2, as in the header, found 3 values \(utf-8, .*into quo"),
        ("image,group\n1,x\n2,y\n1,z\n", "line 4: expected one group per image, found 'z' for '1', and 'x' in line"),
        ("image,group\n1 ,x\n1,\n", "line 3: expected one group per image, found '' for '1', and 'x' in line 2"),
        ('image,group\n1,"x\n2,y\n', "line 3: expected a row of a CSV file, found unexpected end of data; close the"),
        ('image,group\n1,"x\n2,y"\n', "line 3: expected a name and a group, found a value with a line break; close"),
        *(
            (f'image,group\n1,"{value}"\n', f"line 2: .*, found '{re.escape(value)}'; Excel has changed it: format")
            for value in ("1.23457E+11", "1,2E+5", "#REF!", "#WERT!", "####")
        ),
        (b"PK\x03\x04", r"expected a CSV file, found a workbook or another binary file; save the sheet as CSV \(UTF-8"),
        (b"\xd0\xcf\x11\xe0\xa1", "found a workbook"),
        (b"image,group\n1,\x81\n", "found text that is not utf-8 or cp1252; save it as CSV"),
        (b"image,group\n1,a\0\n", "found text that is not utf-8 or cp1252; save it as CSV"),
        ("image,group\n1,x\n".encode("utf-16")[:-1], "found text that is not utf-16; save it as CSV"),
        (b"", r"found the columns \[\]"),
        ("group,id\nx,1\ny\nz,\n", r"(?s)2 problems.*line 3: expected a name in the column 'id', found none.*line 4"),
    ],
)
def test_invalid_group_files_are_refused(tmp_path, content, message):
    with pytest.raises(Refused, match=message):
        table(tmp_path, content)
    with pytest.raises(Refused, match=r"expected a CSV file, found .*No such file.*; check the path"):
        Groups(tmp_path / "gone.csv")


one_image = st.tuples(st.integers(0, 30), st.sampled_from([None, "a", "b", "c", "d"]), st.booleans())
collections = st.lists(one_image, min_size=8, max_size=60)


def images_of(images) -> list[Found]:
    """Images whose name is their place, by bytes, group and whether they have a mask."""
    return [
        Found(str(n), "m" if mask else None, group=group, sha256=f"{digest:04d}")
        for n, (digest, group, mask) in enumerate(images)
    ]


def held_out(ones: list[Found], shares, *, seed: int) -> list[list[int]]:
    parts = hold_out(ones, [one.label is not None for one in ones], shares, seed=seed)
    return [[int(one.image) for one in part] for part in parts]


def assert_exact_and_grouped(parts, ones: list[Found]) -> None:
    assert sorted(index for part in parts for index in part) == list(range(len(ones)))
    for cluster in clusters([one.sha256 for one in ones], [one.group for one in ones]):
        assert sum(not set(cluster).isdisjoint(part) for part in parts) == 1


@given(collections, st.integers(1, 4), st.integers(0, 5))
def test_iid_is_exact_grouped_and_deterministic(images, sites, seed):
    ones = images_of(images)
    together = clusters([one.sha256 for one in ones], [one.group for one in ones])
    if len(together) < sites:
        with pytest.raises(Refused, match="choose fewer sites"):
            iid(together, sites, seed=seed)
        return
    parts = iid(together, sites, seed=seed)
    assert_exact_and_grouped(parts, ones)
    assert all(parts)
    assert parts == iid(together, sites, seed=seed)


@given(collections, st.sampled_from([(0.1, 0.1), (0.0, 0.3), (0.4, 0.4)]), st.integers(0, 5))
def test_held_out_splits_are_exact_grouped_and_deterministic(images, shares, seed):
    ones = images_of(images)
    parts = held_out(ones, shares, seed=seed)
    assert_exact_and_grouped(parts, ones)
    assert all(ones[index].label for part in parts[:-1] for index in part)
    assert parts[-1]
    assert parts == held_out(ones, shares, seed=seed)


def test_hold_out_ignores_file_order_and_is_proportional_to_labels():
    ones = images_of([(number, None, True) for number in range(40)])
    order = np.random.default_rng(0).permutation(40)
    one, other = (held_out(each, [0.2, 0.1], seed=3) for each in (ones, [ones[index] for index in order]))
    assert [len(part) for part in one] == [8, 4, 28]
    assert list(map(set, one)) == list(map(set, other))
    few = images_of([(number, None, number < 12) for number in range(100)])
    assert [len(part) for part in held_out(few, [0.1, 0.2], seed=0)] == [4, 8, 88]


@pytest.mark.parametrize(
    ("validation", "test", "messages"),
    [
        (1.5, 0.1, ["--validation: expected a share in [0, 1), found 1.5; for instance"]),
        (-0.1, 0.1, ["--validation: expected a share in [0, 1), found -0.1; for instance"]),
        (0, float("nan"), ["--test: expected a share in [0, 1), found nan; for instance"]),
        (0.4, 0.6, ["--validation and --test: expected less than 1 together, found 0.4 and 0.6; for instance 0.1 and"]),
        (0.0, 0.9, []),
    ],
)
def test_invalid_shares_are_reported_by_option(validation, test, messages):
    assert [str(problem).removesuffix(" 0.1") for problem in share_problems(validation, test)] == messages


U, V, T, P = Split.UNLABELLED, Split.VALIDATION, Split.TEST, Split.PUBLIC


def found(name: str, count: int, *, groups: int = 0, masks: bool = True, first: int = 0) -> list[Found]:
    """Images with bytes of their own."""
    numbers = range(first, first + count)
    group = [f"{name} {n % groups}" if groups else None for n in numbers]
    label = [f"m/{n}" if masks else None for n in numbers]
    return [Found(f"{name}/{n}", m, name, g, None, f"{name}{n}") for n, m, g in zip(numbers, label, group, strict=True)]


def counts(places) -> dict[str, list[int]]:
    sites = dict.fromkeys(name for name, _ in places if name)
    return {name: [len(places.get((name, split), [])) for split in (U, V, T)] for name in sites}


def test_divided_site_has_equal_disjoint_parts_in_every_split():
    places = {("", P): found("p", 3), ("a", U): found("a", 10), ("a", V): found("a", 4, first=10)}
    places["a", T] = found("a", 5, first=14)
    divided, sentences = divide_sites(places, 2, seed=3)
    assert divided["", P] == places["", P]
    assert counts(divided)["a-1"][:2] == counts(divided)["a-2"][:2] == [5, 2]
    assert sorted(len(divided[f"a-{n}", T]) for n in (1, 2)) == [2, 3]
    images = [one.image for place, ones in divided.items() if place[0] for one in ones]
    assert sorted(images) == sorted(f"a/{n}" for n in range(19))
    assert sentences == []
    one_patient = found("a", 5, groups=1) + found("a", 5, first=5)
    assert counts(divide_sites({("a", U): one_patient}, 2)[0]) == {"a-1": [5, 0, 0], "a-2": [5, 0, 0]}


def test_parts_depend_on_seed_and_not_on_order():
    places = {("a", U): found("a", 20)}
    first = divide_sites(places, 4, seed=0)[0]
    turned = divide_sites({("a", U): places["a", U][::-1]}, 4, seed=0)[0]
    assert {k: {o.image for o in v} for k, v in first.items()} == {k: {o.image for o in v} for k, v in turned.items()}
    assert first != divide_sites(places, 4, seed=1)[0]


def test_groups_stay_together_across_splits_and_missing_split_is_reported():
    places = {("a", U): found("a", 8, groups=4), ("a", T): found("a", 1, groups=4, first=8)}
    divided, sentences = divide_sites(places, 2)
    where = {(one.group, name) for (name, _), ones in divided.items() for one in ones}
    assert len(where) == 4, "each group is at one site"
    assert sorted(sum(counts(divided)[f"a-{n}"]) for n in (1, 2)) == [4, 5]
    empty = next(n for n in (1, 2) if not divided[f"a-{n}", T])
    assert sentences == [f"a-{empty} has no test images: too few groups to divide"]


def test_copies_stay_in_one_part_and_too_few_groups_are_refused():
    places = {("a", U): [replace(one, sha256="x") for one in found("a", 2)]}
    with pytest.raises(Refused, match=r"--divide 2: a: expected at least 2, found 1 independent group"):
        divide_sites(places, 2)
    assert counts(divide_sites({("a", U): found("a", 2)}, 2)[0]) == {"a-1": [1, 0, 0], "a-2": [1, 0, 0]}
    with pytest.raises(Refused, match="--divide: expected a whole number >= 1, found 0"):
        divide_sites(places, 0)


def test_unseen_site_measures_on_unshared_images_and_is_not_divided():
    a, b = found("a", 4), found("b", 6)
    b[0] = replace(b[0], label=None)
    b[1], b[3] = replace(b[1], sha256=a[0].sha256, group="volume"), replace(b[3], group="volume")
    a[1], b[2] = (replace(one, group="video") for one in (a[1], b[2]))
    places, sentences = make_unseen({("a", U): a, ("b", U): b[:5], ("b", V): b[5:]}, ["b"])
    assert places == {("a", U): a, ("b", T): b[4:]}
    assert sentences == [
        "1 image of b has no mask: left out",
        "1 image of b is also elsewhere, but the site must be unseen: left out",
        "2 images of b share a patient or video with others, but the site must be unseen: left out",
    ]
    assert list(counts(divide_sites(places, 2, skip=["b"])[0])) == ["a-1", "a-2", "b"]


@pytest.mark.parametrize("spared", [["a-2"], []])
def test_part_names_conflicting_with_site_are_refused(spared):
    expected = "--divide 2: a: expected free names a-1 to a-2 for its parts, found a site 'a-2'; rename the site"
    with pytest.raises(Refused, match=expected):
        divide_sites({("a", U): found("a", 4), ("a-2", T): found("b", 4)}, 2, skip=spared)


def test_invalid_unseen_sites_are_refused():
    places = {("a", U): found("a", 2, masks=False), ("b", U): found("b", 2)}
    with pytest.raises(Refused, match="expected at least one site left for training, found every site"):
        make_unseen(places, ["a", "b"])
    message = r"--unseen a: expected images with masks, found no image .*; 2 images of a have no mask: left out"
    with pytest.raises(Refused, match=message):
        make_unseen(places, ["a"])
