"""Public collections in their official layouts, and published lists of who had which image."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise

import pytest

from samfed_monai.core.errors import Refused
from samfed_monai.data.datalist import Split
from samfed_monai.data.public import (
    Coverage,
    collection_of,
    find_isic,
    find_polyps,
    find_published,
)
from samfed_monai.data.reading import read_mask
from tests.data import polyp_folders
from tests.data.making import disc, picture, save, site

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


def test_masks_without_an_image_are_told_with_their_folder(tmp_path, caplog):
    polyp_folders.kvasir(tmp_path)
    save(tmp_path / "Kvasir-SEG" / "masks" / "gone.png", disc())
    find_polyps(tmp_path)
    assert "1 mask of Kvasir-SEG/masks belongs to no image; left out, such as gone.png" in caplog.text


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
    with pytest.raises(Refused, match="unpack them, zip files with --unpack"):
        find_isic(tmp_path)


LIST = {
    "Open-Set": {"labeled_train": ["1.png", "2.png"]},
    "Clinic A": {
        "labeled_train": [],
        "unlabeled_train": ["3.jpg"],
        "val_list": ["4.png"],
        "test_list": ["5.png", "6.png"],
    },
}


def published(folder, content=LIST, name="mine.json"):
    (folder / name).write_text(json.dumps(content))
    return folder / name


def test_one_pool_for_all_clients_is_matched_by_stem(tmp_path):
    for number in (1, 3, 4, 5):
        save(tmp_path / "images" / f"{number}.jpg", picture(number))
        save(tmp_path / "masks" / f"{number}.png", disc())
    found = find_published(published(tmp_path), tmp_path)
    assert {place: [one.image for one in ones] for place, ones in found.places.items()} == {
        ("", Split.PUBLIC): ["images/1.jpg"],
        ("Clinic A", Split.UNLABELLED): ["images/3.jpg"],
        ("Clinic A", Split.VALIDATION): ["images/4.jpg"],
        ("Clinic A", Split.TEST): ["images/5.jpg"],
    }
    assert found.coverage == [
        Coverage("Open-Set", Split.PUBLIC, 2, ["2.png"]),
        Coverage("Clinic A", Split.UNLABELLED, 1, []),
        Coverage("Clinic A", Split.VALIDATION, 1, []),
        Coverage("Clinic A", Split.TEST, 2, ["6.png"]),
    ]
    assert found.name == "mine"


def test_clients_find_their_folders_by_name_or_are_told(tmp_path):
    for folder in ("open_set", "clinic_a_2020"):
        for number in range(1, 7):
            save(tmp_path / folder / "images" / f"{number}.png", picture(number))
    found = find_published(published(tmp_path), tmp_path)
    assert found.places["Clinic A", Split.TEST][0].image == "clinic_a_2020/images/5.png"
    assert not any(part.missing for part in found.coverage)
    found = find_published(tmp_path / "mine.json", tmp_path, folders={"Clinic A": "open_set"})
    assert found.places["Clinic A", Split.TEST][0].image == "open_set/images/5.png"
    with pytest.raises(Refused, match="--folder: expected clients among"):
        find_published(tmp_path / "mine.json", tmp_path, folders={"Clinic B": "x"})


def test_an_absent_client_is_missing_as_a_whole(tmp_path):
    save(tmp_path / "open_set" / "images" / "1.png", picture(1))
    found = find_published(published(tmp_path), tmp_path)
    assert [(part.found, part.listed) for part in found.coverage] == [
        (1, 2),
        (0, 1),
        (0, 1),
        (0, 2),
    ]


def test_an_isic_archive_is_a_pool(tmp_path):
    save(tmp_path / "ISIC2018_Task1-2_Training_Input" / "ISIC_0000001.jpg", picture(1))
    found = find_published(published(tmp_path, {"public": {"labeled_train": ["ISIC_0000001.jpg"]}}), tmp_path)
    assert found.places["", Split.PUBLIC][0].image.endswith("ISIC_0000001.jpg")


def test_other_formats_are_refused_at_once(tmp_path):
    path = published(tmp_path, {"a": {"train": [], "val_list": "x"}, "b": []})
    with pytest.raises(Refused, match="3 problems") as caught:
        find_published(path, tmp_path)
    assert "mine.json -> a#train: expected one of ['labeled_train'" in str(caught.value)


def test_images_of_one_stem_could_each_be_the_published_one_and_are_refused(tmp_path):
    for place in ("1.png", "more/1.png", "2.png"):
        save(tmp_path / "images" / place, picture(len(place)))
    with pytest.raises(
        Refused, match=r"2 (problems|times)(.|\n)*1\.png(.|\n)*found a stem that other images have, too"
    ):
        find_published(published(tmp_path), tmp_path)


def test_what_was_not_read_of_a_pool_is_told(tmp_path, caplog):
    save(tmp_path / "images" / "1.png", picture(1))
    save(tmp_path / "masks" / "gone.png", disc())
    (tmp_path / "images" / "notes.txt").write_text("x")
    find_published(published(tmp_path), tmp_path)
    assert "/images: not read: 1 text (notes.txt)" in caplog.text
    assert "belongs to no image; left out, such as gone.png" in caplog.text


def test_nothing_at_hand_is_refused(tmp_path):
    site(tmp_path, "open_set", 1, 1)
    with pytest.raises(Refused, match=r"found none of the images of mine.json"):
        find_published(published(tmp_path), tmp_path)


def test_fault_29_a_changed_file_does_not_carry_the_published_name(tmp_path):
    save(tmp_path / "images" / "1.png", picture(1))
    found = find_published(published(tmp_path, name="isic_hssf.json"), tmp_path)
    assert found.name == "isic_hssf (changed)"


def test_the_published_files_are_known(samfed_data):
    splits = samfed_data / "data" / "splits"
    found = find_published(splits / "polyp_hssf.json", samfed_data / "data" / "polyp")
    assert found.name == "polyp_hssf"
    covered = {(part.client, part.split.value): (part.found, part.listed) for part in found.coverage}
    assert covered["CVC-ColonDB", "public"] == (379, 380)
    assert covered["Kvasir", "unlabelled"] == (800, 800)
    assert covered["EndoTect-ETIS", "test"] == (0, 40)
    found = find_published(splits / "isic_hssf.json", samfed_data / "data" / "skin" / "isic2017")
    assert (found.name, len(found.places["", Split.PUBLIC])) == ("isic_hssf", 66)
    sizes = [[part.found for part in found.coverage if part.client == f"domain{n}"] for n in range(1, 5)]
    assert sizes == [[116, 13, 18], [217, 26, 30], [451, 55, 65], [687, 92, 85]]
    assert sum(len(part.missing) for part in found.coverage) == 2694 - 1921
