"""Public polyp collections: their layouts, and frames of one video that stay together."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest

from samfed_monai.core.errors import Refused
from samfed_monai.data.public import (
    collection_of,
    find_polyps,
)
from samfed_monai.data.reading import read_mask
from tests.data import polyp_folders
from tests.data.making import picture, save

clinicdb_sequence, colondb_sequence, cvc300_sequence = (
    collection_of(name).sequence for name in ("CVC-ClinicDB", "CVC-ColonDB", "CVC-300")
)


def pairs(found) -> list[tuple[str, str | None]]:
    return [(one.image, one.label) for one in found]


def test_clinicdb_pairs_original_with_ground_truth(tmp_path):
    polyp_folders.clinicdb(tmp_path)
    found = find_polyps(tmp_path)
    assert list(found.sites) == ["CVC-ClinicDB"]
    ones = found.sites["CVC-ClinicDB"]
    assert pairs(ones)[0] == ("CVC-ClinicDB/Original/1.tif", "CVC-ClinicDB/Ground Truth/1.tif")
    assert [one.group for one in ones] == ["clinicdb_seq1", "clinicdb_seq1", "clinicdb_seq2"]
    assert found.threshold is None


def test_clinicdb_as_png_beside_tif_counts_once(tmp_path):
    polyp_folders.clinicdb(tmp_path, suffix="png", inside="PNG/")
    polyp_folders.clinicdb(tmp_path, suffix="tif", inside="TIF/")
    assert pairs(find_polyps(tmp_path).sites["CVC-ClinicDB"])[0] == (
        "CVC-ClinicDB/PNG/Original/1.png",
        "CVC-ClinicDB/PNG/Ground Truth/1.png",
    )


def test_colondb_in_one_folder_takes_the_polyp_masks_only(tmp_path):
    polyp_folders.colondb(tmp_path)
    ones = find_polyps(tmp_path).sites["CVC-ColonDB"]
    assert pairs(ones)[0] == ("CVC-ColonDB/CVC-ColonDB/1.bmp", "CVC-ColonDB/CVC-ColonDB/p1.bmp")
    assert [one.group for one in ones] == [f"colondb_seq{n}" for n in (1, 4, 1, 2)]  # 1, 301, 38, 39


def test_cvc_300_shares_the_groups_of_colondb(tmp_path):
    polyp_folders.cvc300(tmp_path)
    ones = find_polyps(tmp_path).sites["CVC-300"]
    assert pairs(ones)[0] == ("CVC-300/bbdd/1.bmp", "CVC-300/gtpolyp/1.bmp")
    assert [one.group for one in ones] == [f"colondb_seq{n}" for n in (1, 15, 2)]  # 1, 300, 39


def test_etis_masks_begin_with_p(tmp_path):
    polyp_folders.etis(tmp_path)
    first = find_polyps(tmp_path).sites["ETIS-LaribPolypDB"][0]
    assert first.image == "ETIS-LaribPolypDB/ETIS-LaribPolypDB/1.tif"
    assert first.label == "ETIS-LaribPolypDB/Ground Truth/p1.tif"
    assert first.group is None


@pytest.mark.parametrize(("make", "site"), [(polyp_folders.kvasir, "Kvasir-SEG"), (polyp_folders.endotect, "EndoTect")])
def test_jpeg_masks_declare_a_threshold(tmp_path, make, site):
    make(tmp_path)
    found = find_polyps(tmp_path)
    assert found.threshold == 128
    assert len(found.sites[site]) == 3
    label = tmp_path / str(found.sites[site][0].label)
    with pytest.raises(Refused, match="grey levels"):
        read_mask(label)
    assert set(read_mask(label, found.threshold).ravel().tolist()) == {0, 1}


def test_polypgen_is_a_site_for_each_centre_and_one_of_sequences(tmp_path):
    polyp_folders.polypgen(tmp_path)
    found = find_polyps(tmp_path)
    names = [f"PolypGen-C{n}" for n in range(1, 7)]
    assert list(found.sites) == [*names, "PolypGen-sequences"]
    assert [len(found.sites[name]) for name in names] == [3, 3, 4, 3, 3, 3]
    top = "PolypGen2021_MultiCenterData_v3"
    assert pairs(found.sites["PolypGen-C1"])[0] == (
        f"{top}/data_C1/images_C1/x1.jpg",
        f"{top}/data_C1/masks_C1/x1_mask.jpg",
    )
    assert all(one.label for ones in found.sites.values() for one in ones)
    groups = [one.group for one in found.sites["PolypGen-sequences"]]
    assert groups == ["polypgen_seq1"] * 3 + ["polypgen_seq2"] * 3


def test_every_colour_of_neopolyp_is_polyp(tmp_path):
    polyp_folders.neopolyp(tmp_path)
    found = find_polyps(tmp_path)
    ones = found.sites["BKAI-IGH-NeoPolyp"]
    assert [one.image.rsplit("/", 1)[1] for one in ones] == ["0e1.jpeg", "1e1.jpeg"]
    red, green = (read_mask(tmp_path / str(one.label), found.threshold) for one in ones)
    assert red.sum() == pytest.approx(green.sum(), rel=0.05)
    assert 150 < red.sum() < 250  # a disc of radius 8 has 201 pixels
    with pytest.raises(Refused, match="declare a threshold for the list if every colour is foreground"):
        read_mask(tmp_path / str(ones[0].label))


def test_every_collection_is_understood_as_images_and_masks(tmp_path):
    for name in ("cvc_clinicdb", "cvc_colondb", "cvc-300", "etis", "endotect", "kvasir", "polypgen", "bkai"):
        polyp_folders.pairs(tmp_path, name + "/images/{n}.png", name + "/masks/{n}.png")
    found = find_polyps(tmp_path)
    assert [len(ones) for ones in found.sites.values()] == [3] * 8
    assert list(found.sites)[-1] == "BKAI-IGH-NeoPolyp"


def test_names_that_only_resemble_a_collection_are_not_read(tmp_path):
    assert collection_of("Kvasir-Instrument") is None
    assert collection_of("CVC-VideoClinicDB") is None
    polyp_folders.kvasir(tmp_path)
    save(tmp_path / "Kvasir-Capsule" / "a.jpg", picture(1))
    assert find_polyps(tmp_path).caveats == ["the folder Kvasir-Capsule is no known collection and was not read"]


def test_what_is_wrong_is_told_at_once(tmp_path):
    (tmp_path / "Kvasir-SEG" / "pictures").mkdir(parents=True)
    polyp_folders.clinicdb(tmp_path)
    (tmp_path / "clinicdb").mkdir()
    with pytest.raises(Refused, match="2 problems") as caught:
        find_polyps(tmp_path)
    assert "clinicdb: expected it once, found CVC-ClinicDB also as CVC-ClinicDB" in str(caught.value)
    assert "expected Kvasir-SEG as it was released, found the folders ['pictures']" in str(caught.value)


def test_archives_and_empty_folders_say_what_to_do(tmp_path):
    with pytest.raises(Refused, match=r"found the folders \[\]; rename each collection's folder to its name"):
        find_polyps(tmp_path)
    (tmp_path / "CVC-ClinicDB.rar").write_bytes(b"x")
    with pytest.raises(Refused, match=r"only the archives \['CVC-ClinicDB.rar'\]; unpack them"):
        find_polyps(tmp_path)


def test_two_files_of_one_key_are_refused(tmp_path):
    polyp_folders.kvasir(tmp_path)
    save(tmp_path / "Kvasir-SEG" / "images" / "cju1.png", picture(5))
    with pytest.raises(Refused, match=r"cju1\.png: expected one file each, found the key of cju1\.jpg"):
        find_polyps(tmp_path)


@pytest.mark.parametrize(("sequence", "frames", "count"), [(clinicdb_sequence, 612, 29), (colondb_sequence, 380, 15)])
def test_every_frame_has_one_sequence(sequence, frames, count):
    groups = [sequence(str(number)) for number in range(1, frames + 1)]
    assert None not in groups
    assert len(set(groups)) == count
    changes = sum(one != other for one, other in pairwise(groups))
    assert changes == count - 1  # each is one run of frames
    assert sequence(str(frames + 1)) is None


def test_sizes_of_some_sequences():
    clinic = Counter(clinicdb_sequence(str(number)) for number in range(1, 613))
    assert (clinic["clinicdb_seq1"], clinic["clinicdb_seq10"], clinic["clinicdb_seq29"]) == (25, 6, 21)
    test_part = Counter(cvc300_sequence(str(number)) for number in range(149, 209))
    assert test_part == {"colondb_seq7": 7, "colondb_seq9": 48, "colondb_seq10": 5}


def test_cvc_300_is_numbered_from_1_or_after_clinicdb():
    assert cvc300_sequence("1") == cvc300_sequence("613") == "colondb_seq1"
    assert cvc300_sequence("300") == cvc300_sequence("912") == "colondb_seq15"
    assert cvc300_sequence("913") is None


@pytest.mark.parametrize("name", ["", "0", "p1", "1a", "-1", "²", "٣", "cju0qkwl"])
def test_other_names_have_no_sequence(name):
    assert clinicdb_sequence(name) is None
    assert colondb_sequence(name) is None
    assert cvc300_sequence(name) is None
