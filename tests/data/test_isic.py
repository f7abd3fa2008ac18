from __future__ import annotations

import pytest

from samfed_monai.core.errors import Refused
from samfed_monai.data.public import find_isic
from tests.data.making import disc, picture, save

LAYOUTS = {
    2016: ("ISBI2016_ISIC_Part1_Training_Data", "ISBI2016_ISIC_Part1_Training_GroundTruth", "_Segmentation"),
    2017: ("ISIC-2017_Training_Data", "ISIC-2017_Training_Part1_GroundTruth", "_segmentation"),
    2018: ("ISIC2018_Task1-2_Training_Input", "ISIC2018_Task1_Training_GroundTruth", "_segmentation"),
}


@pytest.mark.parametrize("year", LAYOUTS)
def test_official_layouts(tmp_path, year):
    images, masks, ending = LAYOUTS[year]
    save(tmp_path / images / "ISIC_0000001.jpg", picture(1))
    save(tmp_path / images / "ISIC_0000000.jpg", picture(0))
    save(tmp_path / images / "ISIC_0000000_superpixels.png", picture(0))
    (tmp_path / images / "ATTRIBUTION.txt").write_text("x")
    save(tmp_path / masks / f"ISIC_0000000{ending}.png", disc())
    found = find_isic(tmp_path)
    assert [(one.image, one.label, one.origin) for one in found] == [
        (f"{images}/ISIC_0000000.jpg", f"{masks}/ISIC_0000000{ending}.png", images),
        (f"{images}/ISIC_0000001.jpg", None, images),
    ]


def test_fault_22_two_years_in_one_folder_are_refused(tmp_path):
    save(tmp_path / "2016" / "ISIC_0000001.jpg", picture(1))
    save(tmp_path / "2017" / "ISIC_0000001.jpg", picture(1))
    with pytest.raises(
        Refused,
        match=r"found ISIC_0000001 also as 2016/ISIC_0000001.jpg; move one of the two folders out of DIR",
    ):
        find_isic(tmp_path)


def test_another_layout_is_refused_with_what_to_do(tmp_path):
    with pytest.raises(Refused, match="use `samfed prepare folders`"):
        find_isic(tmp_path)
    (tmp_path / "ISIC-2017_Training_Data.zip").write_bytes(b"")
    with pytest.raises(Refused, match="unpack them first"):
        find_isic(tmp_path)
