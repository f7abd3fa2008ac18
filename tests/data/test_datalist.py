"""The frozen list of images: its paths, its schema, its hash, and what is measured of each image."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samfed_monai.core.errors import Refused
from samfed_monai.data.datalist import DataList, Item, Site, confine, freeze, measuring_notes, require_free, unsafe

A, B, C = "a" * 64, "b" * 64, "c" * 64


def example() -> DataList:
    public = [Item("p/1.jpg", A, "p/1.png", B, "sequence 1")]
    return DataList("skin", public, {"site-1": Site([Item("s/2.jpg", B)], [], [Item("s/3.jpg", C, "s/3.png", A)])})


def edited(path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_saved_list_round_trip_omits_unknown_fields(tmp_path):
    example().save(tmp_path / "list.json")
    loaded = DataList.load(tmp_path / "list.json")
    assert loaded == example()
    assert loaded.hash == example().hash
    content = json.loads((tmp_path / "list.json").read_text())
    assert list(content) == ["schema", "name", "hash", "mask_threshold", "public", "sites"]
    assert content["hash"] == loaded.hash
    assert content["sites"]["site-1"]["unlabelled"] == [{"image": "s/2.jpg", "sha256": B}]
    weak = DataList("list", [replace(MASK, image="0.jpg", label="0.png")], {"a": Site([WEAK])})
    weak.save(tmp_path / "weak.json")
    assert DataList.load(tmp_path / "weak.json") == weak


names = st.text(
    st.characters(min_codepoint=33, max_codepoint=0x2FFF, exclude_characters="/\\:", exclude_categories=("Cc",)),
    min_size=1,
    max_size=8,
)


@given(st.lists(names.filter(lambda name: name != ".."), unique=True, max_size=5))
def test_items_round_trip_and_change_hash(tmp_path_factory, stems):
    items = [Item(f"i/{stem}.png", A, f"m/{stem}.png", B) for stem in stems]
    datalist = DataList("list", items, {"site": Site()})
    path = tmp_path_factory.mktemp("lists") / "list.json"
    datalist.save(path)
    assert DataList.load(path) == datalist
    assert len({replace(datalist, public=items[:count]).hash for count in range(len(items) + 1)}) == len(items) + 1


def test_fault_29_changed_list_is_refused(tmp_path):
    path = tmp_path / "list.json"
    example().save(path)
    edited(path, lambda content: content["public"][0].update(group="sequence 2"))
    with pytest.raises(Refused, match=r"list.json -> hash: .*the list was changed after it was made"):
        DataList.load(path)


def test_schema_violations_and_other_problems_are_reported_together(tmp_path):
    path = tmp_path / "list.json"
    example().save(path)

    def misspell(content):
        content["masks_threshold"] = 3
        content["mask_threshold"] = 300
        content["public"][0]["lable"] = "x"
        content["sites"]["site-1"]["test"][0]["sha256"] = "12"
        content["sites"]["a/b"] = {"unlabelled": [], "validation": []}

    edited(path, misspell)
    assert sorted(refusals(path)) == [
        "list.json -> mask_threshold: expected at most 255, found 300",
        "list.json -> masks_threshold: expected one of",
        "list.json -> public#0#lable: expected one of",
        "list.json -> sites#a/b#test: expected a value, found no such key",
        "list.json -> sites#site-1#test#0#sha256: expected 64 lower-case hexadecimal digits, found '12'",
    ]
    path.unlink()
    example().save(path)

    odd = ["a/b", "@home", "$1", "%list.json#name", ".a", "a\x1f", "a:b"]  # no text in a configuration, or no folder
    servers, alike = ["Server", "public", ""], ["site-1 ", "SITE-1", "é", "e\u0301"]

    def spoil(content):
        content["public"][0]["image"] = "../1.jpg"
        for name in [*odd, *servers, *alike]:
            content["sites"][name] = {"unlabelled": [], "validation": [], "test": []}

    edited(path, spoil)
    expected = "expected a name without slashes and drives (C:) that does not begin with . @ $ or %, found"
    differ = "expected names that differ in more than case and spaces, found"
    assert refusals(path) == [
        *(f"list.json -> sites#{repr(name)[1:-1]}: {expected} {name!r}" for name in odd),
        *(f"list.json -> sites#{name}: expected another name, found {name!r}" for name in servers[:2]),
        f"list.json -> sites#: {expected} ''",
        *(f"list.json -> sites#{name}: {differ} {name!r} beside 'site-1'" for name in alike[:2]),
        f"list.json -> sites#e\u0301: {differ} 'e\u0301' beside 'é'",
        "list.json -> public#0#image: expected a relative path inside the data root, found '..' in '../1.jpg'",
    ]


def refusals(path) -> list[str]:
    """What is refused of a list, up to the names that are known and what to do."""
    with pytest.raises(Refused) as caught:
        DataList.load(path)
    return [re.split(r" \[|; | \(str\)", str(problem))[0] for problem in caught.value.problems]


MASK = Item("1.jpg", A, "1.png", B)
WEAK = replace(MASK, label_kind="points")
INSIDE = r"expected a relative path inside the data root, found '\.\.'"


@pytest.mark.parametrize(
    ("public", "site", "message"),
    [
        ([Item("../1.jpg", A)], Site(), rf"(?s)2 problems.*#0#image: {INSIDE}.*#0#label: expected .*, found no mask;"),
        ([WEAK], Site(), r"public#0#label_kind: expected a mask, as for every public item, found a weak label \("),
        ([], Site([], [WEAK]), r"validation#0#label_kind: expected a mask, as for every validation item, found a weak"),
        ([], Site([], [], [WEAK]), r"a#test#0#label_kind: expected a mask, as for every test item, found a weak label"),
        ([], Site([replace(WEAK, label_kind="line")]), r"a#unlabelled#0#label_kind: expected .*, found 'line'"),
        ([], Site([Item("1.jpg", A, label_kind="box")]), "label_kind: expected a label of this kind, found 'box' with"),
        ([], Site([Item("1.jpg", A, "1.png")]), "label_sha256: expected label and label_sha256 together, found only o"),
        ([MASK], Site([MASK]), "a#unlabelled: expected each image once, found '1.jpg', which is also in list.json ->"),
        ([MASK], Site([Item("./1.jpg", A)]), "unlabelled: .* image once, found './1.jpg', which is also in list.json"),
        ([MASK, Item("2.jpg", A, "1.png", B)], Site(), "each label once, found '1.png', which .* public; if two im"),
        ([], Site([Item("1.jpg", A)], [Item("2.jpg", A, ".//1.jpg", B)]), "label once, found './/1.jpg', .*a#unl"),
        ([], Site([Item("1.jpg", A, volume="v", slice=0)]), "a#unlabelled#0#slice: expected at least 1, found 0"),
        ([], Site([Item("1.jpg", A, spacing=[1, 2])]), r"spacing: expected three lengths in mm, found \[1, 2\] \(list"),
    ],
)
def test_fault_01_and_fault_18_items_invalid_for_split_or_volume_are_refused(tmp_path, public, site, message):
    with pytest.raises(Refused, match=message):
        DataList("list", public, {"a": site}).save(tmp_path / "list.json")
    assert not (tmp_path / "list.json").exists()


def test_site_list_holds_public_and_own_images_with_same_hashes():
    whole = replace(example(), sites={**example().sites, "site-2": Site([Item("t/4.jpg", A)], [], [])})
    own = whole.for_site("site-2")
    assert own.public == whole.public
    assert list(own.sites) == ["site-2"]
    assert own.hash != whole.hash
    assert own.part_hash("site-2") == whole.part_hash("site-2")
    assert own.public_hash() == whole.public_hash() == whole.for_server().public_hash()
    assert whole.for_server().sites == {}
    with pytest.raises(Refused, match=r"skin -> sites: expected one of \['site-1'\], found 'site-9'"):
        example().for_site("site-9")


@pytest.mark.parametrize(
    "changed",
    [
        {"mask_threshold": 128},
        {"sites": {"site-1": Site([Item("s/2.jpg", A)], [], [Item("s/3.jpg", C, "s/3.png", A)])}},
        {"sites": {"site-1": Site([], [Item("s/2.jpg", B)], [Item("s/3.jpg", C, "s/3.png", A)])}},
    ],
)
def test_part_hash_depends_on_images_splits_and_threshold(changed):
    assert replace(example(), **changed).part_hash("site-1") != example().part_hash("site-1")


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("../a.png", "'..' in"),
        ("a/../../b.png", "'..' in"),
        ("/etc/passwd", "the absolute path"),
        ("C:/a.png", "the absolute path"),
        ("a\\b.png", "a backslash"),
        ("", "an empty path"),
        ("a\nb.png", "a control character"),
        ("\udcff.png", "invalid UTF-8 in '\\xff.png'"),
        ("a\x9b.png", "a control character"),
        *((path, None) for path in ("a.png", "Klinik Süd/Läsion 1.png", "画像/..a.png", "a/./b..png")),
    ],
)
def test_fault_18_and_fault_20_paths_outside_root_are_unsafe(path, reason):
    found = unsafe(path)
    assert found is None if reason is None else reason in found


def test_fault_19_link_out_of_root_is_refused(tmp_path):
    (tmp_path / "outside.png").write_bytes(b"x")
    root = tmp_path / "root"
    root.mkdir()
    (root / "a.png").symlink_to(tmp_path / "outside.png")
    (root / "inside.png").write_bytes(b"x")
    (root / "b.png").symlink_to(root / "inside.png")
    with pytest.raises(Refused, match=r"- a\.png: expected .*'a.png', a link out of the data root; copy the file"):
        confine(root, "a.png")
    with pytest.raises(Refused, match=r"e\.png: expected a relative .*, found '\.\.' in '\.\./outside\.png'; list on"):
        confine(root, "../outside.png")
    (root / "c.png").symlink_to("gone.png")
    with pytest.raises(Refused, match=r"c\.png: expected a file, found a link to a missing file; restore the file"):
        confine(root, "c.png")
    (tmp_path / "link").symlink_to(root)
    for here in (root, tmp_path / "link"):
        assert confine(here, "b.png") == (root / "inside.png").resolve()


ONE = DataList("skin", [Item("1.png", "a" * 64, "1_m.png", "b" * 64)])
OTHER = DataList("skin", [Item("2.png", "c" * 64, "2_m.png", "d" * 64)])


def test_same_list_is_accepted_and_file_unchanged(tmp_path):
    path = tmp_path / "list.json"
    require_free(path, name="skin")
    freeze({path: ONE})
    assert DataList.load(path) == ONE
    path.write_text(json.dumps(json.loads(path.read_text())))  # another white space, the same list
    before = path.read_bytes()
    require_free(path, name="skin")
    freeze({path: ONE})
    assert path.read_bytes() == before
    with pytest.raises(Refused, match=r"expected no file, or the list 'polyp', found the list 'skin'; choose another"):
        require_free(path, name="polyp")


def test_fault_29_different_list_is_not_overwritten(tmp_path):
    freeze({tmp_path / "list.json": ONE})
    (tmp_path / "text.json").write_text("{}")
    with pytest.raises(Refused, match="2 problems") as caught:
        freeze({tmp_path / name: OTHER for name in ("new.json", "list.json", "text.json")})
    first, second = map(str, caught.value.problems)
    assert first == (
        f"{tmp_path}/list.json: expected no file, or the same list ({OTHER.hash[:12]}), "
        f"found another data list, 'skin' ({ONE.hash[:12]}); choose another name, or delete the file"
    )
    assert "text.json: expected no file, or a data list, found no valid data list (text.json -> schema: no" in second
    assert not (tmp_path / "new.json").exists()
    assert DataList.load(tmp_path / "list.json") == ONE


def items(name: str, count: int, *, masks: bool = True) -> list[Item]:
    label = ("m.png", "b" * 64) if masks else (None, None)
    return [Item(f"{name}/{number}.png", "a" * 64, *label) for number in range(count)]


def test_measuring_notes_name_sites_with_small_splits():
    sites = {
        "enough": Site(items("u", 3, masks=False), items("v", 5), items("t", 5)),
        "few to validate": Site(items("u", 3), items("v", 4), items("t", 5)),
        "few to test": Site(items("u", 3), items("v", 5), items("t", 4)),
        "none drawn": Site(items("u", 3), [], []),
        "no masks": Site(items("u", 3, masks=False), [], []),
        "weak labels": Site([replace(one, label_kind="box") for one in items("u", 3)], [], []),
        "unseen": Site([], [], items("t", 5)),
        "few unseen": Site([], [], items("t", 4)),
    }
    bare, few = measuring_notes(DataList("list", [], sites))
    assert bare.startswith("no scores at no masks, weak labels: no image has a mask")
    assert few.startswith("few images for scores at few to validate, few to test, none drawn, few unseen: fewer than 5")
    assert measuring_notes(DataList("list", [], {"test only": sites["few unseen"]})) == []
    (nothing,) = measuring_notes(DataList("list", [], {"none drawn": sites["none drawn"]}))
    assert "images with masks, drawn by a share of each site; larger shares: --validation, --test); a run" in nothing
