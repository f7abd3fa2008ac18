from __future__ import annotations

import json

import pytest

from samfed_monai.core.errors import Refused
from samfed_monai.data.datalist import Split
from samfed_monai.data.public import Coverage, find_published
from tests.data.making import disc, picture, save, site

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
