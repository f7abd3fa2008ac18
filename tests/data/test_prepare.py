"""From a source, or from several collections, to a frozen list with its report beside it."""

from __future__ import annotations

import json
import re
import shutil
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from samfed_monai.core.errors import Refused
from samfed_monai.data.checks import check_datalist
from samfed_monai.data.datalist import DataList
from samfed_monai.data.folders import Found
from samfed_monai.data.prepare import prepare_folders, prepare_isic, prepare_list, prepare_polyp, prepare_source
from samfed_monai.data.public import find_polyps
from samfed_monai.data.records import load_records
from tests.data import polyp_folders
from tests.data.making import disc, drawn, options, picture, save, site


def sizes(datalist) -> dict[str, list[int]]:
    return {name: [len(items) for _, items in site.splits()] for name, site in datalist.sites.items()}


def places(datalist) -> dict[str | None, set[tuple[str, str]]]:
    """Sites and splits of each group."""
    where: dict[str | None, set[tuple[str, str]]] = defaultdict(set)
    for place, split, item in datalist.items():
        where[item.group].add((place, split.value))
    return where


def test_folders_are_prepared_to_valid_list(tmp_path):
    root = tmp_path / "data"
    site(root, "public", 3, 3)
    site(root, "a", 20, 20, first=100)
    site(root, "b", 10, 0, first=200)
    made = prepare_folders(root, options(tmp_path, public="public"))
    datalist = DataList.load(made.path)
    assert datalist.name == "list"
    assert len(datalist.public) == 3
    assert sizes(datalist) == {"a": [16, 2, 2], "b": [10, 0, 0]}
    assert all(item.label for item in datalist.sites["a"].unlabelled)
    assert check_datalist(datalist, root) == []
    before = made.path.read_bytes()
    assert prepare_folders(root, options(tmp_path, public="public")).datalist.hash == datalist.hash
    with pytest.raises(Refused, match=r"list\.json: expected no file, .*, found another data list, 'list'"):
        prepare_folders(root, options(tmp_path, seed=1, public="public"))
    assert made.path.read_bytes() == before


@pytest.mark.parametrize(
    ("prepare", "shares", "message"),
    [
        (prepare_folders, {"public": "public", "validation": 1.5}, "--validation: expected a share"),
        (prepare_isic, {"test": -1}, "--test: expected a share"),
        (prepare_polyp, {"validation": 0.5, "test": 0.5}, "--validation and --test: expected less than 1 together"),
        (prepare_polyp, {"limit_per_site": 0}, "--limit-per-site: expected a whole number >= 1, found 0"),
        (prepare_isic, {"sites": 0}, "--sites: expected a whole number >= 1, found 0"),
        (prepare_isic, {"groups": "no.csv"}, r"no\.csv: expected a CSV file, found .*No such file"),
        (prepare_polyp, {"mask_threshold": 256}, r"--mask-threshold: expected a whole number in \[1, 255\], found 256"),
        (prepare_isic, {"group_column": "patient"}, "--group-column: expected --groups .* as well, found 'patient'"),
        (prepare_folders, {"test_only": True, "limit_per_site": 2}, "--limit-per-site: expected nothing with --test"),
    ],
)
def test_options_and_output_are_checked_before_folders(tmp_path, prepare, shares, message):
    (tmp_path / "list.json").write_text("my notes")
    with pytest.raises(Refused, match=rf"(?s)2 problems.*{message}.*no file, or a data list"):
        prepare(tmp_path / "nowhere", options(tmp_path, **shares))


def test_groups_are_not_divided_between_splits_or_sites(tmp_path):
    root = tmp_path / "data"
    site(root, "public", 4, 4)
    site(root, "a", 30, 30, first=100)
    rows = [f"a_{n:03d},sequence {n // 5}" for n in range(30)] + ["public_000,sequence 0"]
    (root / "a/masks/a_029.png").unlink()
    (tmp_path / "groups.csv").write_text("id,group\n" + "\n".join(rows))
    chosen = options(tmp_path, groups=tmp_path / "groups.csv", public="public")
    made = prepare_folders(root, replace(chosen, validation=0.2, test=0.2))
    assert [each for each in made.warnings if "not used for" in each] == [
        "5 images of a have masks but are not used for validation or test: their groups, such as 'sequence 0', are "
        "also used elsewhere; if these are different patients, give each site its own names of groups",
        "4 images of a have masks but are not used for validation or test: their groups, such as 'sequence 5', are "
        "also used by images without a mask",
    ]
    site(root, "b", 5, 5, first=200)
    unseen = replace(chosen, unseen=["a"], output=tmp_path / "unseen.json")
    assert "not measured" not in str(prepare_folders(root, unseen).warnings), "all that have a mask are, at once"
    datalist, where = made.datalist, places(made.datalist)
    assert where.pop("sequence 0") == {("", "public"), ("a", "unlabelled")}
    where.pop(None)
    assert all(len(each) == 1 for each in where.values())
    assert sizes(datalist) == {"a": [20, 5, 5]}


def test_fault_16_and_fault_17_repeated_images_are_not_held_out(tmp_path):
    root = tmp_path / "data"
    site(root, "public", 2, 2)
    for name in ("a", "b"):
        site(root, name, 8, 8, first=100)  # the same pictures at both sites
    made = prepare_folders(root, options(tmp_path, public="public", validation=0.3, test=0.3))
    assert sizes(made.datalist) == {"a": [8, 0, 0], "b": [8, 0, 0]}
    assert "8 images are in both a and b" in made.warnings


def test_equal_image_names_in_patient_folders_are_kept_apart(tmp_path):
    root = tmp_path / "data"
    site(root, "public", 3, 3)
    visits = ["b/1", "b/3", "images/0", "images/2"]
    frames = [f"p{patient}/{frame}" for patient in (1, 2, 3) for frame in visits]
    drawn(root / "a", *(f"images/{frame}.png" for frame in frames), *(f"masks/{frame}_mask.png" for frame in frames))
    made = prepare_folders(root, options(tmp_path, public="public", validation=0.3, test=0.3, by_folder=True))
    [found] = made.datalist.sites.values()
    for split, items in found.splits():
        labels = {one.image.replace("images", "masks", 1).replace(".png", "_mask.png") for one in items}
        assert {one.label for one in items} == labels
        assert len({one.group for one in items}) == 1, "a patient's images stay together"
        records = load_records(made.datalist, root, split=split.value, site="a")
        folder = items[0].group.rpartition("/")[2]
        assert [record["id"] for record in records] == [f"{folder}/{frame}" for frame in visits]
    without = prepare_folders(root, options(tmp_path / "b", public="public", validation=0.3, test=0.3))
    warning = "images of a have the same names as images in other folders, such as"
    assert [any(warning in one for one in each.warnings) for each in (made, without)] == [False, True]
    rows = "image,group\nimages/p1/b/1.png,x\nimages/p2/b/3.png,x\n"
    (tmp_path / "g.csv").write_text(rows)
    chosen = options(tmp_path / "c", public="public", validation=0.3, by_folder=True, groups=tmp_path / "g.csv")
    groups = [item.group for _, _, item in prepare_folders(root, chosen).datalist.items()]
    assert [groups.count(each) for each in ("x", "a/images/p3", None)] == [8, 4, 3], "an image decides for its folder"
    (tmp_path / "g.csv").write_text(f"{rows}images/p2/images/0.png,y\n")
    with pytest.raises(Refused, match="one group for all of them, found 'x' and 'y' for images of a/images/p2;"):
        prepare_folders(root, options(tmp_path / "d", public="public", by_folder=True, groups=tmp_path / "g.csv"))


def test_threshold_above_1_is_refused_beside_masks_of_0_and_1(tmp_path):
    site(tmp_path / "data", "public", 2, 2)
    site(tmp_path / "data", "a", 2, 2, first=100)
    save(tmp_path / "data/public/masks/public_001.png", disc(value=1))
    chosen = options(tmp_path, public="public", mask_threshold=2)
    datalist = prepare_folders(tmp_path / "data", chosen).datalist
    organs = Image.fromarray(np.repeat(np.arange(3, dtype=np.uint8), 256).reshape(24, 32))  # of which 2 is meant
    save(tmp_path / "data/a/masks/a_001.png", organs)
    message = r"public_001\.png: expected the same meaning of 1 in all masks, found only 0 and 1, so 1 is "
    message += r"foreground, but in a/masks/a_001\.png 1 is below --mask-threshold 2; save .* \(masks of 0 and 1: 1\)"
    with pytest.raises(Refused, match=message):
        prepare_folders(tmp_path / "data", replace(chosen, output=tmp_path / "b.json"))
    assert re.search(message, "\n".join(map(str, check_datalist(datalist, tmp_path / "data"))))
    prepare_folders(tmp_path / "data", replace(chosen, output=tmp_path / "c.json", mask_threshold=1))


def test_published_list_with_training_image_in_test_is_refused(tmp_path):
    drawn(tmp_path, "images/1.png", "images/2.png", "masks/1.png", "masks/copy.png")
    shutil.copy(tmp_path / "images/2.png", tmp_path / "images/copy.png")
    parts = {"labeled_train": ["1.png"], "unlabeled_train": ["2.png"], "test_list": ["copy.png"]}
    (tmp_path / "published.json").write_text(json.dumps({"a": parts}))
    with pytest.raises(Refused, match=r"copy\.png: expected images of test in no other split, found the same bytes"):
        prepare_list(tmp_path / "published.json", tmp_path, options(tmp_path))
    assert not (tmp_path / "list.json").exists()


def test_bad_files_masks_and_groups_are_refused_together(tmp_path):
    root = tmp_path / "data"
    site(root, "public", 3, 2)
    site(root, "a", 3, 3)
    site(root, "c", 3, 0)
    (root / "b" / "images").mkdir(parents=True)
    (root / "public" / "images" / "public_000.png").write_bytes(b"")
    save(root / "a" / "masks" / "a_001.png", disc(10, 10))
    save(root / "a" / "images" / "a_002.jpg", picture(9))
    for path in (root / "c" / "images").iterdir():
        path.write_bytes(b"x")
    (tmp_path / "groups.csv").write_text("id,group\nframe 7,x\n")
    with pytest.raises(Refused, match="9 problems") as caught:
        prepare_folders(root, options(tmp_path, groups=tmp_path / "groups.csv", public="public"))
    for message in (
        "a file of zero bytes",
        "10 x 10 pixels",
        "the same stem as a/images/a_002.jpg",
        "public_002.png: expected a mask, as for every public image, found no mask",
        "c/images/c_002.png: expected one of JPEG",
        "found no images",
        "found only groups for names like 'frame 7'",
    ):
        assert message in str(caught.value)
    assert sum("skip the file with --skip" in str(problem) for problem in caught.value.problems) == 4, "one, and c's"
    assert not (tmp_path / "list.json").exists()


def test_fault_14_and_fault_15_empty_and_full_masks_are_counted(tmp_path):
    root = tmp_path / "data"
    site(root, "public", 3, 3)
    site(root, "a", 10, 0, first=50)
    save(root / "public" / "masks" / "public_000.png", disc(radius=0))
    for path in (root / "a" / "images").iterdir():
        save(root / "a" / "masks" / path.name, disc(radius=99))
    made = prepare_folders(root, options(tmp_path, public="public"))
    assert "the public set has 1 empty and 0 full masks; scores count them separately" in made.warnings
    assert "a has 0 empty and 10 full masks; scores count them separately" in made.warnings
    assert sizes(made.datalist) == {"a": [8, 1, 1]}
    assert all(item.label for _, items in made.datalist.sites["a"].splits() for item in items)
    assert check_datalist(made.datalist, root) == []


@pytest.fixture(scope="module")
def isic(tmp_path_factory):
    """15 images of the training archive, and 5 of the test archive; not to be changed."""
    root = tmp_path_factory.mktemp("isic")
    for number in range(20):
        year = "Test" if number >= 15 else "Training"
        save(root / f"ISIC-2017_{year}_Data" / f"ISIC_{number:07d}.jpg", picture(number))
        folder = root / f"ISIC-2017_{year}_Part1_GroundTruth"
        save(folder / f"ISIC_{number:07d}_segmentation.png", disc(radius=2 + number % 9))
    return root


@pytest.mark.parametrize(("public", "count"), [(None, 0), ("4", 4), ("0.25", 5), ("ISIC-2017_Test_Data", 5)])
def test_isic_is_divided_exactly(tmp_path, isic, public, count):
    made = prepare_isic(isic, options(tmp_path, public=public, sites=3))
    items = [item.image for _, _, item in made.datalist.items()]
    assert len(items) == len(set(items)) == 20
    assert len(made.datalist.public) == count
    assert list(made.datalist.sites) == ["site-1", "site-2", "site-3"]


def test_isic_by_folder_and_invalid_options_are_refused_before_reading(tmp_path, isic, monkeypatch):
    made = prepare_isic(isic, options(tmp_path, public="5", sites="folder"))
    assert list(made.datalist.sites) == ["ISIC-2017_Test_Data", "ISIC-2017_Training_Data"]
    shown = r"--public: expected a count below 20, a share in \(0, 1\), one of \[.*\], or none"
    monkeypatch.setattr("samfed_monai.data.prepare.inspect_images", lambda *_: pytest.fail("read"))
    cases = [({"public": public}, shown) for public in ("many", "20", "0", "1.5")]
    cases += [({"sites": "folders"}, r"--sites: expected one of \['folder'\], found 'folders'")]
    cases += [({"sites": 21}, "--sites: expected at least one group per site, found 21 sites for")]
    for given, message in cases:
        with pytest.raises(Refused, match=message):
            prepare_isic(isic, options(tmp_path, **given))


def test_impossible_divisions_and_missing_masks_are_refused_before_reading(tmp_path, monkeypatch):
    monkeypatch.setattr("samfed_monai.data.prepare.survey", lambda *_, **__: pytest.fail("read"))
    for number, name in enumerate(("public", "a", "a-1")):
        site(tmp_path / "data", name, 3, 3 if name == "public" else 0, first=10 * number)
    (tmp_path / "groups.csv").write_text("image,group\na/images/a_000.png,x\na/images/a_001.png,x\n")
    grouped = {"public": "public", "divide": 3, "unseen": ["a-1"], "groups": tmp_path / "groups.csv"}
    for root, given, message in (
        ("data", {"public": "public", "divide": 4}, "(?s)2 problems.*--divide 4: a: expected at least 4, found 3 ind"),
        ("data", grouped, "--divide 3: a: expected at least 3, found 2 independent groups"),
        ("data", {"public": "public", "divide": 2}, "--divide 2: a: expected free names a-1 to a-2 for its parts"),
        ("data/a", {"test_only": True}, "expected images with masks for testing, found 3 images of a have no mask"),
    ):
        with pytest.raises(Refused, match=message):
            prepare_folders(tmp_path / root, options(tmp_path, **given))


def test_pool_without_masks_or_folders_is_refused(tmp_path):
    drawn(tmp_path / "isic", *(f"ISIC_{number:07d}.jpg" for number in range(3)))
    with pytest.raises(Refused, match="--public: expected images with masks, found none to draw from; unpack the"):
        prepare_isic(tmp_path / "isic", options(tmp_path, public="1"))
    with pytest.raises(Refused, match="--sites folder: expected a folder for each site, found images in no folder"):
        prepare_isic(tmp_path / "isic", options(tmp_path, sites="folder"))


def test_isic_archives_are_unpacked_on_request(tmp_path, isic, caplog):
    root = tmp_path / "zipped"
    for name in ("all", "part/more"):
        shutil.make_archive(str(root / name), "zip", isic)
    with pytest.raises(Refused, match="unpack the archives; --unpack does this for zip files"):
        prepare_isic(root, options(tmp_path, public="4"))
    assert sum(1 for _ in prepare_isic(root, options(tmp_path, public="4", unpack=True)).datalist.items()) == 20
    assert caplog.messages[-1] == f"{root}: not read: 1 ZIP (more.zip)"
    shutil.make_archive(str(root / "again"), "zip", isic.parent, isic.name)
    with pytest.raises(Refused, match="expected each name once, found ISIC_0000015 also in"):
        prepare_isic(root, options(tmp_path, public="4", unpack=True))
    assert not (root / isic.name).exists(), "nothing is unpacked"


@pytest.mark.parametrize(("images", "found"), [([], "no image below"), ([Found("1.png"), "2.png"], "str in the list")])
def test_source_returning_nothing_or_other_types_is_refused(tmp_path, images, found):
    def of_lab(_: Path) -> list[object]:
        return images

    with pytest.raises(Refused, match=f"of_lab: expected a list of samfed_monai.data.folders.Found, found {found}"):
        prepare_source(of_lab, tmp_path, options(tmp_path))


@pytest.fixture(scope="module")
def polyps(tmp_path_factory):
    """Three collections, of ClinicDB 2, 6 and 3 frames of three sequences; not to be changed."""
    root = tmp_path_factory.mktemp("polyps")
    polyp_folders.colondb(root)
    polyp_folders.clinicdb(root, [24, 25, *range(26, 32), 51, 52, 53])
    polyp_folders.kvasir(root, range(10))
    return root


@pytest.fixture
def root(tmp_path, polyps):
    return shutil.copytree(polyps, tmp_path / "data")


def test_polyp_collections_are_sites_and_sequences_stay_whole(tmp_path, polyps):
    made = prepare_polyp(polyps, options(tmp_path, public="CVC-ColonDB", validation=0.2, test=0.2))
    datalist = DataList.load(made.path)
    assert (len(datalist.public), datalist.mask_threshold) == (4, 128)
    unlabelled, *measuring = sizes(datalist)["CVC-ClinicDB"]
    assert (unlabelled, sorted(measuring)) == (6, [2, 3])  # a fifth of 11 is 2: the nearest whole sequences
    assert sizes(datalist)["Kvasir-SEG"] == [6, 2, 2]
    assert all(len(places(datalist)[f"clinicdb_seq{n}"]) == 1 for n in (1, 2, 3))
    assert check_datalist(datalist, polyps) == []
    without_public = sizes(prepare_polyp(polyps, options(tmp_path / "b")).datalist)
    assert list(map(sum, without_public.values())) == [11, 4, 10]


def test_groups_file_overrides_known_sequences(tmp_path, polyps):
    rows = "image,group\nKvasir-SEG/images/cju0.jpg,g\nKvasir-SEG/images/cju1.jpg,g\n26,h\n27,i\n"
    (tmp_path / "groups.csv").write_text(rows)
    made = prepare_polyp(polyps, options(tmp_path, public="CVC-ColonDB", groups=tmp_path / "groups.csv"))
    assert len(places(made.datalist)["g"]) == 1
    assert {"clinicdb_seq1", "clinicdb_seq2", "h", "i"} < places(made.datalist).keys(), "a better table may divide"


def test_site_sharing_all_sequences_with_public_set_has_no_test_images(tmp_path, root):
    polyp_folders.cvc300(root)  # frames 1, 39 and 300: sequences 1, 2 and 15
    polyp_folders.colondb(root, (274,))
    made = prepare_polyp(root, options(tmp_path, public="CVC-ColonDB", leave_out=["kvasir"]))
    assert sizes(made.datalist)["CVC-300"] == [3, 0, 0]
    assert "Kvasir-SEG" not in made.datalist.sites


def test_unseen_and_divided_collections_accept_any_name(tmp_path, polyps):
    made = prepare_polyp(polyps, options(tmp_path, unseen=["kvasir_seg"], divide=2, public="colondb"))
    assert sizes(made.datalist)["Kvasir-SEG"] == [0, 0, 10]
    assert set(made.datalist.sites) == {"CVC-ClinicDB-1", "CVC-ClinicDB-2", "Kvasir-SEG"}
    where = places(made.datalist)
    assert all(len({site for site, _ in where[f"clinicdb_seq{n}"]}) == 1 for n in (1, 2, 3))


def test_polypgen_centres_are_sites_and_public_centre_is_chosen(tmp_path):
    polyp_folders.polypgen(tmp_path / "data")
    refused = {"PolypGen": r"one of \['PolypGen-C1'.*name one centre", "CVC-ColonDB": "one of .*'CVC-Colo"}
    for public, message in refused.items():
        with pytest.raises(Refused, match=rf"--public: expected {message}"):
            prepare_polyp(tmp_path / "data", options(tmp_path, public=public))
    made = prepare_polyp(tmp_path / "data", options(tmp_path, public="PolypGen-C1", test=0.4))
    assert list(made.datalist.sites) == [*(f"PolypGen-C{n}" for n in range(2, 7)), "PolypGen-sequences"]
    polyp_folders.kvasir(tmp_path / "alone")
    with pytest.raises(Refused, match="--public: expected at least one more site, found only Kvasir-SEG; add at"):
        prepare_polyp(tmp_path / "alone", options(tmp_path, public="kvasir"))


def test_missing_public_masks_and_bad_files_are_refused_together(tmp_path, root, isic):
    archives = shutil.copytree(isic, tmp_path / "isic")
    next(archives.glob("*Test_Part1*/*_0000015_segmentation.png")).unlink()
    next(archives.glob("*Training_Data/*_0000000.jpg")).write_bytes(b"")
    with pytest.raises(Refused, match="2 problems") as caught:
        prepare_isic(archives, options(tmp_path, public="ISIC-2017_Test_Data"))
    assert "ISIC_0000015.jpg: expected a mask, as for every public image, found no mask" in str(caught.value)
    (root / "CVC-ColonDB" / "CVC-ColonDB" / "p38.bmp").unlink()
    next((root / "Kvasir-SEG" / "images").iterdir()).write_bytes(b"")
    with pytest.raises(Refused, match=r"(?s)38\.bmp: expected a mask, as for every public image, found no.*zero bytes"):
        prepare_polyp(root, options(tmp_path, public="CVC-ColonDB"))


def test_archives_are_unpacked_into_folders_of_same_name(tmp_path):
    polyp_folders.neopolyp(tmp_path / "loose")
    polyp_folders.colondb(tmp_path / "zipped")
    loose = tmp_path / "loose" / "bkai-igh-neopolyp"  # no folder of its own inside
    shutil.make_archive(str(tmp_path / "zipped" / "bkai-igh-neopolyp"), "zip", loose)
    made = prepare_polyp(tmp_path / "zipped", options(tmp_path, public="CVC-ColonDB", unpack=True))
    assert sizes(made.datalist) == {"BKAI-IGH-NeoPolyp": [2, 0, 0]}


def test_published_list_finds_official_layouts(tmp_path, root):
    polyp_folders.etis(root)
    polyp_folders.endotect(root)
    polyp_folders.cvc300(root)
    content = {
        "CVC-ColonDB": {"labeled_train": ["1.png", "38.png"]},
        "CVC-ClinicDB": {"unlabeled_train": ["24.png", "26.png", "27.png"], "test_list": ["28.png"]},
        "EndoTect-ETIS": {"unlabeled_train": ["0a94-1.png", "2.png"]},
        "CVC-300": {"unlabeled_train": ["613.png", "912.png", "700.png"]},
    }
    (tmp_path / "published.json").write_text(json.dumps(content))
    chosen = options(tmp_path, mask_threshold=128)
    made = prepare_list(tmp_path / "published.json", root, replace(chosen, by_sequence=True))
    assert sizes(made.datalist) == {"CVC-ClinicDB": [3, 0, 1], "EndoTect-ETIS": [2, 0, 0], "CVC-300": [2, 0, 0]}
    images = [item.image for item in made.datalist.sites["CVC-300"].unlabelled]
    assert images == ["CVC-300/bbdd/1.bmp", "CVC-300/bbdd/300.bmp"]
    assert [part.missing for part in made.coverage if part.missing] == [["700.png"]]
    assert {item.group for item in made.datalist.public} == {"colondb_seq1"}
    plain = prepare_list(tmp_path / "published.json", root, replace(chosen, output=tmp_path / "plain.json"))
    assert {item.group for _, _, item in plain.datalist.items()} == {None}


@pytest.mark.data
def test_real_collections_are_found_and_prepared(tmp_path, samfed_data):
    root = samfed_data / "data" / "polyp"
    found = find_polyps(root)
    counts = {name: len(ones) for name, ones in found.sites.items()}
    assert (counts, found.threshold) == ({"CVC-ClinicDB": 612, "CVC-ColonDB": 379, "Kvasir-SEG": 1000}, 128)
    assert [len({one.group for one in ones}) for ones in found.sites.values()] == [29, 15, 1]
    for one in (one for ones in found.sites.values() for one in ones[::40]):
        for name in (one.image, one.label):
            (tmp_path / "some" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / name, tmp_path / "some" / name)
    made = prepare_polyp(tmp_path / "some", options(tmp_path, public="CVC-ColonDB", leave_out=["kvasir"]))
    assert len(made.datalist.public) == 10
    assert list(made.datalist.sites) == ["CVC-ClinicDB"]
    assert all(len(where) == 1 for group, where in places(made.datalist).items() if group)
