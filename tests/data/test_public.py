"""Public collections in their official layouts, and published lists of who had which image."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise

import pytest

from samfed_monai.core.errors import Refused
from samfed_monai.data.datalist import Split
from samfed_monai.data.public import Coverage, collection_of, find_isic, find_polyps, find_published
from samfed_monai.data.reading import read_mask
from tests.data import polyp_folders
from tests.data.making import disc, drawn, picture, save

clinicdb_sequence, colondb_sequence, cvc300_sequence = (
    collection_of(name).sequence for name in ("CVC-ClinicDB", "CVC-ColonDB", "CVC-300")
)


@pytest.mark.parametrize(
    ("name", "site", "image", "label", "groups", "threshold"),
    [
        ("clinicdb", "CVC-ClinicDB", "Original/1.tif", "Ground Truth/1.tif", ("clinicdb_seq", 1, 1, 2), None),
        ("colondb", "CVC-ColonDB", "CVC-ColonDB/1.bmp", "CVC-ColonDB/p1.bmp", ("colondb_seq", 1, 4, 1, 2), None),
        ("cvc300", "CVC-300", "bbdd/1.bmp", "gtpolyp/1.bmp", ("colondb_seq", 1, 15, 2), None),
        ("etis", "ETIS-LaribPolypDB", "ETIS-LaribPolypDB/1.tif", "Ground Truth/p1.tif", ("", None, None, None), None),
        ("kvasir", "Kvasir-SEG", "images/cju1.jpg", "masks/cju1.jpg", ("", None, None, None), 128),
        ("endotect", "EndoTect", "images/0a94-1.jpg", "masks/0a94-1.jpg", ("", None, None, None), 128),
        ("neopolyp", "BKAI-IGH-NeoPolyp", "train/train/0e1.jpeg", "train_gt/train_gt/0e1.jpeg", ("", None, None), 128),
    ],
)
def test_official_layout_is_read_as_site_with_pairs_and_groups(tmp_path, name, site, image, label, groups, threshold):
    getattr(polyp_folders, name)(tmp_path)
    found = find_polyps(tmp_path)
    assert (list(found.sites), found.threshold) == ([site], threshold)
    ones, folder = found.sites[site], next(tmp_path.iterdir()).name
    assert (ones[0].image, ones[0].label) == (f"{folder}/{image}", f"{folder}/{label}")
    assert all(one.label for one in ones)
    assert [one.group for one in ones] == [number and f"{groups[0]}{number}" for number in groups[1:]]


def test_clinicdb_copies_and_parts_are_counted_once(tmp_path, caplog):
    caplog.set_level("INFO")
    polyp_folders.clinicdb(tmp_path, (26, 30), inside="more/")
    polyp_folders.clinicdb(tmp_path, suffix="png", inside="PNG/")
    polyp_folders.clinicdb(tmp_path, suffix="tif", inside="TIF/")
    ones = find_polyps(tmp_path).sites["CVC-ClinicDB"]
    assert [one.image.split("/")[1] for one in ones] == ["PNG", "PNG", "PNG", "more"]
    assert "1 image of CVC-ClinicDB/more/Original left out as duplicates by name" in caplog.text
    for image in ("more/Original/26.tif", "TIF/Original/1.tif"):
        save(tmp_path / "CVC-ClinicDB" / image, picture(1))
    unlike = r"(?s)2 problems.*more/Original/26\.tif: expected one image of each name, found a diff"
    with pytest.raises(Refused, match=unlike):
        find_polyps(tmp_path)


def test_jpeg_masks_are_read_with_collection_threshold(tmp_path):
    polyp_folders.kvasir(tmp_path)
    label = tmp_path / "Kvasir-SEG/masks/cju1.jpg"
    with pytest.raises(Refused, match="grey levels"):
        read_mask(label)
    assert set(read_mask(label, find_polyps(tmp_path).threshold).ravel().tolist()) == {0, 1}


def test_polypgen_has_site_per_centre_and_sequence_site(tmp_path):
    polyp_folders.polypgen(tmp_path)
    found = find_polyps(tmp_path).sites
    assert {name: len(ones) for name, ones in found.items()} == {
        **{f"PolypGen-C{n}": 4 if n == 3 else 3 for n in range(1, 7)},
        "PolypGen-sequences": 6,
    }
    first, top = found["PolypGen-C1"][0], "PolypGen2021_MultiCenterData_v3/data_C1"
    assert (first.image, first.label) == (f"{top}/images_C1/x1.jpg", f"{top}/masks_C1/x1_mask.jpg")
    assert all(one.label for ones in found.values() for one in ones)
    assert [one.group for one in found["PolypGen-sequences"]] == ["polypgen_seq1"] * 3 + ["polypgen_seq2"] * 3


def test_neopolyp_colours_are_read_as_foreground(tmp_path):
    polyp_folders.neopolyp(tmp_path)
    found = find_polyps(tmp_path)
    ones = found.sites["BKAI-IGH-NeoPolyp"]
    red, green = (read_mask(tmp_path / str(one.label), found.threshold) for one in ones)
    assert red.sum() == pytest.approx(green.sum(), rel=0.05)
    assert 150 < red.sum() < 250  # a disc of radius 8 has 201 pixels
    with pytest.raises(Refused, match="give --mask-threshold if every colour is foreground"):
        read_mask(tmp_path / str(ones[0].label))


def test_all_collections_are_read_as_images_and_masks(tmp_path):
    for name in ("cvc_clinicdb", "cvc_colondb", "cvc-300", "etis", "endotect", "kvasir", "polypgen", "bkai"):
        polyp_folders.pairs(tmp_path, name + "/images/{n}.png", name + "/masks/{n}.png")
    found = find_polyps(tmp_path)
    assert [len(ones) for ones in found.sites.values()] == [3] * 8
    assert list(found.sites)[-1] == "BKAI-IGH-NeoPolyp"


def test_similar_names_are_not_read_and_unpaired_files_counted(tmp_path, caplog):
    assert collection_of("Kvasir-Instrument") is collection_of("CVC-VideoClinicDB") is None
    polyp_folders.kvasir(tmp_path)
    drawn(tmp_path, "Kvasir-Capsule/a.jpg", "Kvasir-SEG/images/other/a.jpg", "Kvasir-SEG/masks/gone.png")
    (tmp_path / "Kvasir-SEG/images/b.gif").touch()
    (tmp_path / "CVC-300.zip").touch()
    found = find_polyps(tmp_path)
    packed = f"{tmp_path.name}: 1 image or archive outside the folders that are read, such as CVC-300.zip, left out"
    assert found.caveats == ["the folder Kvasir-Capsule is not a known collection and was not read", packed]
    assert len(found.sites["Kvasir-SEG"]) == 3, "nor is a folder of another name in that of the images"
    lonely, others = caplog.messages
    assert lonely == "1 mask of Kvasir-SEG belongs to no image; left out, such as gone.png"
    assert others.endswith("SEG: not read: 1 GIF (b.gif), 1 JSON (kavsir_bboxes.json), 1 picture (a.jpg)")


@pytest.mark.parametrize(
    ("find", "names", "message"),
    [
        (find_polyps, "", r"found the folders \[\]; rename each collection's folder to its name"),
        (find_polyps, "CVC-ClinicDB.rar", r"found only the archives \['CVC-ClinicDB.rar'\]; unpack the archives"),
        (
            find_polyps,
            "CVC-ClinicDB/images/1.png CVC-ClinicDB/masks/1.png clinicdb/1.png Kvasir-SEG/pictures/1.png",
            "(?s)2 problems.*clinicdb: expected each collection once, found CVC-ClinicDB also in the folder CVC-.*"
            r"expected the released layout of Kvasir-SEG, found the folders \['pictures'\]",
        ),
        (
            find_polyps,
            "Kvasir-SEG/images/1.jpg Kvasir-SEG/images/1.png Kvasir-SEG/masks/1.png",
            r"1\.png: expected each name once, found 1 also in Kvasir-SEG/images/1\.jpg; delete or rename one",
        ),
        (find_isic, "", "found no file such as ISIC_0000000.jpg; for images/ and .* use `samfed prepare folders`"),
        (find_isic, "ISIC-2017_Training_Data.zip", "no ISIC image, but the archives .*; unpack .*; --unpack does"),
        (
            find_isic,  # fault 22: two years in one folder
            "2016/ISIC_0000001.jpg 2017/ISIC_0000001.jpg",
            "found ISIC_0000001 also in 2016/ISIC_0000001.jpg; move one of the folders out of DIR",
        ),
    ],
)
def test_fault_22_unknown_layouts_are_refused_with_hint(tmp_path, find, names, message):
    for name in names.split():
        (tmp_path / name).touch() if name.endswith((".zip", ".rar")) else drawn(tmp_path, name)
    with pytest.raises(Refused, match=message):
        find(tmp_path)


@pytest.mark.parametrize(("sequence", "frames", "count"), [(clinicdb_sequence, 612, 29), (colondb_sequence, 380, 15)])
def test_every_frame_has_one_sequence(sequence, frames, count):
    groups = [sequence(str(number)) for number in range(1, frames + 1)]
    assert None not in groups
    assert len(set(groups)) == count
    assert sum(one != other for one, other in pairwise(groups)) == count - 1  # each is one run of frames
    no_frames = ("", "0", "p1", "1a", "-1", "²", "٣", "cju0qkwl")
    assert all(sequence(name) is cvc300_sequence(name) is None for name in no_frames)
    assert sequence(str(frames + 1)) is None


def test_sequence_sizes_and_cvc_300_numberings():
    clinic = Counter(clinicdb_sequence(str(number)) for number in range(1, 613))
    assert (clinic["clinicdb_seq1"], clinic["clinicdb_seq10"], clinic["clinicdb_seq29"]) == (25, 6, 21)
    test_part = Counter(cvc300_sequence(str(number)) for number in range(149, 209))
    assert test_part == {"colondb_seq7": 7, "colondb_seq9": 48, "colondb_seq10": 5}
    assert cvc300_sequence("1") == cvc300_sequence("613") == "colondb_seq1"
    assert cvc300_sequence("300") == cvc300_sequence("912") == "colondb_seq15"  # after ClinicDB's 612
    assert cvc300_sequence("913") is None


@pytest.mark.parametrize(
    ("images", "masks", "ending"),
    [
        ("ISBI2016_ISIC_Part1_Training_Data", "ISBI2016_ISIC_Part1_Training_GroundTruth", "_Segmentation"),
        ("ISIC-2017_Training_Data", "ISIC-2017_Training_Part1_GroundTruth", "_segmentation"),
        ("ISIC2018_Task1-2_Training_Input", "ISIC2018_Task1_Training_GroundTruth", "_segmentation"),
    ],
)
def test_official_isic_archives_are_read(tmp_path, images, masks, ending, caplog):
    drawn(tmp_path / images, "ISIC_0000001.jpg", "ISIC_0000000.jpg", "ISIC_0000000_superpixels.png")
    (tmp_path / images / "ATTRIBUTION.txt").write_text("x")
    for number in (0, 2):
        save(tmp_path / masks / f"ISIC_000000{number}{ending}.png", disc())
    assert [(one.image, one.label, one.origin) for one in find_isic(tmp_path)] == [
        (f"{images}/ISIC_0000000.jpg", f"{masks}/ISIC_0000000{ending}.png", images),
        (f"{images}/ISIC_0000001.jpg", None, images),
    ]
    lonely, others = caplog.messages
    assert lonely.endswith(f" belongs to no image; left out, such as ISIC_0000002{ending}.png")
    assert others.endswith(": not read: 1 picture (ISIC_0000000_superpixels.png), 1 text (ATTRIBUTION.txt)")
    found = find_published(published(tmp_path, {"public": {"labeled_train": ["ISIC_0000001.jpg"]}}), tmp_path)
    assert [one.image for one in found.places["", Split.PUBLIC]] == [f"{images}/ISIC_0000001.jpg"], "it is a pool"


CLIENT = {"labeled_train": [], "unlabeled_train": ["3.jpg"], "val_list": ["4.png"], "test_list": ["5.png", "6.png"]}
LIST = {"Open-Set": {"labeled_train": ["1.png", "2.png"]}, "Clinic A": CLIENT}


def published(folder, content=LIST, name="mine.json"):
    (folder / name).write_text(json.dumps(content))
    return folder / name


def test_single_pool_is_matched_to_all_clients_by_stem(tmp_path):
    drawn(tmp_path, *(name for number in (1, 3, 4, 5) for name in (f"images/{number}.jpg", f"masks/{number}.png")))
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


def test_clients_are_matched_to_folders_by_name(tmp_path):
    for folder in ("open_set", "clinic_a_2020"):
        drawn(tmp_path / folder, *(f"images/{number}.png" for number in range(1, 7)))
    found = find_published(published(tmp_path), tmp_path)
    assert found.places["Clinic A", Split.TEST][0].image == "clinic_a_2020/images/5.png"
    assert not any(part.missing for part in found.coverage)
    found = find_published(tmp_path / "mine.json", tmp_path, folders={"Clinic A": "open_set"})
    assert found.places["Clinic A", Split.TEST][0].image == "open_set/images/5.png"
    with pytest.raises(Refused, match="--folder: expected clients among"):
        find_published(tmp_path / "mine.json", tmp_path, folders={"Clinic B": "x"})
    save(tmp_path / "absent" / "open_set" / "images" / "1.png", picture(1))
    found = find_published(tmp_path / "mine.json", tmp_path / "absent")
    assert [(len(part.missing), part.listed) for part in found.coverage] == [(1, 2), (1, 1), (1, 1), (2, 2)]


@pytest.mark.parametrize(
    ("names", "content", "message"),
    [
        ("", {"a": {"train": [], "val_list": "x"}, "b": []}, r"3 problems.*mine\.json -> a#train: expected one of \["),
        ("images/1.png images/a/1.png images/2.png", LIST, "2 problems.*1.png.*found a stem that other images also"),
        ("open_set/images/0.png", LIST, "found none of the images of mine.json"),
    ],
)
def test_incomplete_pool_is_refused_or_logged(tmp_path, names, content, message, caplog):
    drawn(tmp_path, *names.split())
    with pytest.raises(Refused, match=f"(?s){message}"):
        find_published(published(tmp_path, content), tmp_path)
    drawn(tmp_path / "pool", "images/1.png", "masks/gone.png")
    (tmp_path / "pool" / "images" / "notes.txt").write_text("x")
    find_published(published(tmp_path), tmp_path / "pool")
    assert "/images: not read: 1 text (notes.txt)" in caplog.text
    assert "belongs to no image; left out, such as gone.png" in caplog.text


def test_fault_29_changed_published_list_is_marked_as_changed(tmp_path):
    save(tmp_path / "images" / "1.png", picture(1))
    assert find_published(published(tmp_path, name="isic_hssf.json"), tmp_path).name == "isic_hssf (changed)"


def test_published_files_are_known(samfed_data, monkeypatch):
    monkeypatch.setattr("samfed_monai.data.folders.FILES_TO_OPEN", 0)  # large images are decoded for nothing
    splits = samfed_data / "data" / "splits"
    found = find_published(splits / "polyp_hssf.json", samfed_data / "data" / "polyp")
    assert found.name == "polyp_hssf"
    covered = {(part.client, part.split.value): (len(part.missing), part.listed) for part in found.coverage}
    assert covered["CVC-ColonDB", "public"] == (1, 380)
    assert covered["Kvasir", "unlabelled"] == (0, 800)
    assert covered["EndoTect-ETIS", "test"] == (40, 40)
    found = find_published(splits / "isic_hssf.json", samfed_data / "data" / "skin" / "isic2017")
    assert (found.name, len(found.places["", Split.PUBLIC])) == ("isic_hssf", 66)
    sizes = [[p.listed - len(p.missing) for p in found.coverage if p.client == f"domain{n}"] for n in range(1, 5)]
    assert sizes == [[116, 13, 18], [217, 26, 30], [451, 55, 65], [687, 92, 85]]
    assert sum(len(part.missing) for part in found.coverage) == 2694 - 1921
