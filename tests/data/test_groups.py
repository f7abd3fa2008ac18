from __future__ import annotations

import pytest

from samfed_monai.data.groups import read_groups
from samfed_monai.errors import Refused


def test_paths_match_from_their_ends(tmp_path):
    (tmp_path / "g.csv").write_text("image,group\na/images/1.jpg,x\nb/images/1.jpg,y\nb/images/2.jpg,\n")
    group_of = read_groups(tmp_path / "g.csv")
    assert group_of("images/2.jpg") is None
    assert group_of("somewhere/a/images/1.jpg") == "x"
    assert group_of("b/images/1.jpg") == "y"
    assert group_of("b/images/3.jpg") is None
    with pytest.raises(Refused, match=r"expected one group, found \['x', 'y'\] for 1.jpg"):
        group_of("1.jpg")


def test_stems_match_where_there_is_no_path(tmp_path):
    (tmp_path / "g.csv").write_text("\ufeffid,lesion_id\nISIC_0000001,L7\n", encoding="utf-8")
    assert read_groups(tmp_path / "g.csv", column="lesion_id")("any/ISIC_0000001.jpg") == "L7"


def test_other_files_are_refused(tmp_path):
    (tmp_path / "g.csv").write_text("image,sequence\n1.jpg,x\n")
    with pytest.raises(Refused, match=r"found the columns .*; name the group's column with --group-column"):
        read_groups(tmp_path / "g.csv")
    with pytest.raises(Refused, match="expected a CSV file"):
        read_groups(tmp_path / "none.csv")
