from __future__ import annotations

import json
import zipfile
from dataclasses import replace

import pytest

from samfed_monai.core.errors import Refused
from samfed_monai.data.checks import check_datalist
from samfed_monai.data.datalist import DataList
from samfed_monai.data.prepare import prepare_list, prepare_polyp
from tests.data import polyp_folders
from tests.data.test_prepare import options, sizes
from tests.data.test_prepare_cli import run


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "data"
    polyp_folders.colondb(root)
    polyp_folders.clinicdb(root, range(20, 60))  # sequences 1, 2 and 3: 6, 25 and 9 frames
    polyp_folders.kvasir(root, range(10))
    return root


def places(datalist) -> dict[str | None, set[tuple[str, str]]]:
    where: dict[str | None, set[tuple[str, str]]] = {}
    for place, split, item in datalist.items():
        where.setdefault(item.group, set()).add((place, split.value))
    return where


def test_each_collection_is_a_site_and_sequences_stay_whole(tmp_path, root):
    made = prepare_polyp(root, options=options(tmp_path), validation=0.2, test=0.2)
    datalist = DataList.load(made.path)
    assert (len(datalist.public), datalist.mask_threshold) == (4, 128)
    unlabelled, *measuring = sizes(datalist)["CVC-ClinicDB"]
    assert (unlabelled, sorted(measuring)) == (25, [6, 9])  # a fifth of 40 is 8: the nearest whole sequences
    assert sizes(datalist)["Kvasir-SEG"] == [6, 2, 2]
    where = places(datalist)
    assert all(len(where[f"clinicdb_seq{n}"]) == 1 for n in (1, 2, 3))
    assert check_datalist(datalist, root, progress=False) == []
    assert prepare_polyp(root, options=options(tmp_path), validation=0.2, test=0.2).datalist.hash == datalist.hash


def test_without_a_public_collection_each_of_them_is_a_site(tmp_path, root, capsys):
    assert (
        run("polyp", root, "--public", "none", "--validation", 0.2, "--test", 0.2, "--output", tmp_path / "l.json") == 0
    )
    assert "l: 0 public images, 3 sites" in capsys.readouterr().out
    datalist = DataList.load(tmp_path / "l.json")
    assert datalist.public == []
    assert {name: sum(counts) for name, counts in sizes(datalist).items()} == {
        "CVC-ClinicDB": 40,
        "CVC-ColonDB": 4,
        "Kvasir-SEG": 10,
    }


def test_single_frames_are_drawn_on_request_and_warned_of(tmp_path, root):
    made = prepare_polyp(root, options=options(tmp_path), by_sequence=False)
    assert sizes(made.datalist)["CVC-ClinicDB"] == [32, 4, 4]
    assert any("frames of one sequence look alike" in sentence for sentence in made.warnings)


def test_a_groups_file_goes_before_what_is_known(tmp_path, root):
    (tmp_path / "groups.csv").write_text("image,group\nKvasir-SEG/images/cju0.jpg,g\nKvasir-SEG/images/cju1.jpg,g\n")
    made = prepare_polyp(root, options=options(tmp_path, groups=tmp_path / "groups.csv"))
    assert len(places(made.datalist)["g"]) == 1
    assert "clinicdb_seq1" in places(made.datalist)


def test_a_site_that_shares_all_sequences_with_the_public_set_measures_nothing_and_says_so(tmp_path, root):
    polyp_folders.cvc300(root)  # frames 1, 39 and 300: sequences 1, 2 and 15
    polyp_folders.colondb(root, (274,))
    (root / "more").mkdir()
    made = prepare_polyp(root, options=options(tmp_path), leave_out=["kvasir"])
    assert sizes(made.datalist)["CVC-300"] == [3, 0, 0]
    assert any(sentence.startswith("CVC-300 has no test images") for sentence in made.warnings)
    assert "the folder more is no known collection and was not read" in made.warnings
    assert "Kvasir-SEG" not in made.datalist.sites


def test_unseen_and_divided_collections_by_any_of_their_names(tmp_path, root):
    made = prepare_polyp(root, options=options(tmp_path, unseen=["kvasir_seg"], divide=2), public="colondb")
    assert sizes(made.datalist)["Kvasir-SEG"] == [0, 0, 10]
    assert set(made.datalist.sites) == {"CVC-ClinicDB-1", "CVC-ClinicDB-2", "Kvasir-SEG"}
    where = places(made.datalist)
    assert not any({site for site, _ in where[f"clinicdb_seq{n}"]} > {"CVC-ClinicDB-1"} for n in (1, 2, 3))


def test_polypgen_centres_and_the_choice_of_the_public_one(tmp_path):
    polyp_folders.polypgen(tmp_path / "data")
    with pytest.raises(Refused, match=r"--public: expected one of \['PolypGen-C1'.*name one centre"):
        prepare_polyp(tmp_path / "data", options=options(tmp_path), public="PolypGen")
    with pytest.raises(Refused, match=r"--public: expected one of .*found 'CVC-ColonDB'"):
        prepare_polyp(tmp_path / "data", options=options(tmp_path))
    made = prepare_polyp(tmp_path / "data", options=options(tmp_path), public="PolypGen-C1", test=0.4)
    assert list(made.datalist.sites) == [*(f"PolypGen-C{n}" for n in range(2, 7)), "PolypGen-sequences"]


def test_duplicates_among_public_polyps_are_reported(tmp_path, root):
    first = root / "CVC-ColonDB" / "CVC-ColonDB" / "1.bmp"
    (first.parent / "40.bmp").write_bytes(first.read_bytes())
    (first.parent / "p40.bmp").write_bytes((first.parent / "p1.bmp").read_bytes())
    made = prepare_polyp(root, options=options(tmp_path))
    assert "1 image(s) of the public set repeat the bytes of another one there" in made.warnings


def test_public_images_without_masks_are_refused_together_with_bad_files(tmp_path, root):
    (root / "CVC-ColonDB" / "CVC-ColonDB" / "p38.bmp").unlink()
    next((root / "Kvasir-SEG" / "images").iterdir()).write_bytes(b"")
    with pytest.raises(
        Refused, match=r"(?s)38\.bmp: expected a mask, as every public image, found no mask.*zero bytes"
    ):
        prepare_polyp(root, options=options(tmp_path))


def test_shares_are_looked_at_before_any_folder(tmp_path):
    with pytest.raises(Refused, match=r"--validation and --test: expected less than 1 together, found 0\.5 and 0\.5"):
        prepare_polyp(tmp_path / "nowhere", options=options(tmp_path), validation=0.5, test=0.5)


def test_archives_are_unpacked_into_folders_of_their_names(tmp_path, root):
    zipped = tmp_path / "zipped"
    zipped.mkdir()
    polyp_folders.neopolyp(tmp_path / "loose")
    polyp_folders.colondb(zipped)
    with zipfile.ZipFile(zipped / "bkai-igh-neopolyp.zip", "w") as archive:  # no folder of its own inside
        for path in (tmp_path / "loose" / "bkai-igh-neopolyp").rglob("*.jpeg"):
            archive.write(path, path.relative_to(tmp_path / "loose" / "bkai-igh-neopolyp"))
    made = prepare_polyp(zipped, options=options(tmp_path), unpack_archives=True)
    assert sizes(made.datalist) == {"BKAI-IGH-NeoPolyp": [2, 0, 0]}


def test_a_published_list_finds_the_official_layouts(tmp_path, root):
    polyp_folders.etis(root)
    polyp_folders.endotect(root)
    polyp_folders.cvc300(root)
    content = {
        "CVC-ColonDB": {"labeled_train": ["1.png", "38.png"]},
        "CVC-ClinicDB": {"unlabeled_train": ["20.png", "26.png", "27.png"], "test_list": ["28.png"]},
        "EndoTect-ETIS": {"unlabeled_train": ["0a94-1.png", "2.png"]},
        "CVC-300": {"unlabeled_train": ["613.png", "912.png", "700.png"]},
    }
    (tmp_path / "published.json").write_text(json.dumps(content))
    chosen = options(tmp_path, mask_threshold=128, divide=None)
    made = prepare_list(tmp_path / "published.json", root, options=chosen, by_sequence=True)
    assert sizes(made.datalist) == {"CVC-ClinicDB": [3, 0, 1], "EndoTect-ETIS": [2, 0, 0], "CVC-300": [2, 0, 0]}
    images = [item.image for item in made.datalist.sites["CVC-300"].unlabelled]
    assert images == ["CVC-300/bbdd/1.bmp", "CVC-300/bbdd/300.bmp"]
    assert [part.missing for part in made.coverage if part.missing] == [["700.png"]]
    assert {item.group for item in made.datalist.public} == {"colondb_seq1"}
    plain = prepare_list(tmp_path / "published.json", root, options=replace(chosen, output=tmp_path / "plain.json"))
    assert {item.group for _, _, item in plain.datalist.items()} == {None}


def test_the_command(root, tmp_path, capsys):
    output = tmp_path / "polyp.json"
    assert run("polyp", root, "--output", output, "--no-report", "--leave-out", "kvasir", "--test", 0.2) == 0
    said = capsys.readouterr().out
    assert "polyp: 4 public images, 1 sites" in said
    assert "CVC-ClinicDB: " in said


@pytest.mark.data
def test_the_real_collections(tmp_path, samfed_data):
    made = prepare_polyp(samfed_data / "data" / "polyp", options=options(tmp_path, limit_per_site=50), validation=0.1)
    assert len(made.datalist.public) == 379
    assert list(made.datalist.sites) == ["CVC-ClinicDB", "Kvasir-SEG"]
    assert made.warnings == ["34 image(s) of the public set repeat the bytes of another one there"]
    assert len({item.group for item in made.datalist.public}) == 15
    assert all(len(where) == 1 for group, where in places(made.datalist).items() if group)
