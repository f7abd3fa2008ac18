"""What must stay together: sequences, patients, lesions, equal bytes."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from samfed_monai.core.errors import Refused
from samfed_monai.data.grouping import clusters, draw, read_groups, subset, without_group


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


def test_paths_match_from_their_ends(tmp_path):
    (tmp_path / "g.csv").write_text("image,group\na/images/1.jpg,x\nb/images/1.jpg,y\nb/images/2.jpg,\n")
    group_of = read_groups(tmp_path / "g.csv")
    assert group_of("images/2.jpg") is None
    assert group_of("somewhere/a/images/1.jpg") == "x"
    assert group_of("b/images/1.jpg") == "y"
    assert group_of("b/images/3.jpg") is None
    assert group_of("c/images/1.jpg") is None, "another hospital's image of that name"
    assert group_of("images/3.jpg") is None
    with pytest.raises(Refused, match=r"expected one group, found \['x', 'y'\] for 1.jpg"):
        group_of("1.jpg")


def test_stems_match_where_there_is_no_path(tmp_path):
    (tmp_path / "g.csv").write_text("\ufeffid,lesion_id\nISIC_0000001,L7\n", encoding="utf-8")
    assert read_groups(tmp_path / "g.csv", column="lesion_id")("any/ISIC_0000001.jpg") == "L7"


@pytest.mark.parametrize(
    ("listed", "image"),
    [
        ("A0.frame0", "images/A0.frame0.png"),
        ("1.2.840.113619.2", "images/1.2.840.113619.2.jpg"),
        ("ISIC_0000001.jpg", "images/ISIC_0000001.png"),
        (unicodedata.normalize("NFD", "Läsion.1"), "images/Läsion.1.png"),
    ],
)
def test_an_id_is_a_stem_already_unless_it_ends_as_an_image(tmp_path, listed, image):
    (tmp_path / "g.csv").write_text(f"id,group\n{listed},x\n", encoding="utf-8")
    assert read_groups(tmp_path / "g.csv")(image) == "x"


def test_ids_that_differ_after_their_last_dot_have_groups_of_their_own(tmp_path):
    (tmp_path / "g.csv").write_text("id,group\nA0.frame0,x\nA0.frame1,y\n")
    group_of = read_groups(tmp_path / "g.csv")
    assert [group_of(f"A0.frame{n}.png") for n in range(3)] == ["x", "y", None]


def test_backslashes_and_other_unicode_forms_are_the_same_path(tmp_path):
    rows = "C:\\Süd\\images\\1.jpg,x\nC:\\b\\images\\1.jpg,y\n"
    (tmp_path / "g.csv").write_text("image,group\n" + rows, encoding="utf-8")
    assert read_groups(tmp_path / "g.csv")(unicodedata.normalize("NFD", "Süd/images/1.jpg")) == "x"


def test_images_without_a_group_are_found(tmp_path):
    (tmp_path / "g.csv").write_text("id,patient\n1,x\n2,\n")
    images = ["a/1.png", "a/2.png", "a/3.png", "a/3.png"]
    assert without_group(images, tmp_path / "g.csv", column="patient") == ["a/2.png", "a/3.png"]
    assert without_group([], tmp_path / "g.csv", column="patient") == []


def test_a_file_that_gives_no_image_a_group_is_refused_with_the_names_of_both_sides(tmp_path):
    (tmp_path / "g.csv").write_text("id,group,empty\nfirst,,\nframe 7,x,\n")
    with pytest.raises(Refused, match=r"images like 'a/7\.png', found only groups of names like 'frame 7'; give"):
        without_group(["a/7.png"], tmp_path / "g.csv")
    with pytest.raises(Refused, match=r"images like 'first\.png', found nothing in the column 'empty'"):
        without_group(["first.png"], tmp_path / "g.csv", column="empty")


def test_rows_that_name_no_image_are_refused_with_their_lines(tmp_path):
    (tmp_path / "g.csv").write_text("group,id\nx,1\ny\nz,\n")
    with pytest.raises(Refused, match="2 problems") as caught:
        read_groups(tmp_path / "g.csv")
    assert "g.csv, line 3: expected a name in the column 'id', found none" in str(caught.value)
    assert "g.csv, line 4: expected" in str(caught.value)


def test_other_files_are_refused(tmp_path):
    (tmp_path / "g.csv").write_text("image,sequence\n1.jpg,x\n")
    with pytest.raises(Refused, match=r"found the columns .*; name the group's column with --group-column"):
        read_groups(tmp_path / "g.csv")
    with pytest.raises(Refused, match="expected a CSV file"):
        read_groups(tmp_path / "none.csv")
