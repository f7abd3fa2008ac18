"""Folders whose labels are declared to be scribbles and the like: which are masks, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from samfed_monai.core.errors import Refused
from samfed_monai.data.checks import check_datalist
from samfed_monai.data.datalist import DataList
from samfed_monai.data.prepare import Prepared, prepare_folders
from samfed_monai.data.reading import png_of
from tests.cli.test_prepare import run
from tests.data.making import disc, options, save, site


def prepared(tmp_path: Path, kinds: dict[str, str], **kwargs: object) -> Prepared:
    return prepare_folders(tmp_path / "data", options(tmp_path, **kwargs, public="public", label_kinds=kinds))


def scribble(path: Path, values: tuple[int, ...] = (0, 1, 255)) -> None:
    """A label that is the last of the values but for its first row, which has the others."""
    label = np.full((24, 32), values[-1], np.uint8)
    label[0, : len(values)] = values
    save(path, Image.fromarray(label))


def hospital(root: Path, name: str, images: int, masks: int, first: int) -> None:
    """A site of masks of 0 and 1, then scribbles."""
    site(root, name, images, 0, first=first)
    for number in range(images):
        path = root / name / "masks" / f"{name}_{number:03d}.png"
        save(path, disc(value=1, radius=3 + number % 6)) if number < masks else scribble(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Public masks; ``a`` has 4 masks and 16 scribbles, ``b`` 10 scribbles, ``c`` masks of 0 and 255, ``d`` nothing."""
    root = tmp_path / "data"
    site(root, "public", 3, 3)
    hospital(root, "a", 20, 4, 100)
    hospital(root, "b", 10, 0, 200)
    site(root, "c", 10, 10, first=300)
    site(root, "d", 2, 0, first=400)
    return root


def kinds_of(datalist: DataList, name: str) -> list[str | None]:
    return [item.label_kind for item in datalist.sites[name].unlabelled]


def test_weak_labels_stay_with_training_images_and_masks_measure(root, tmp_path):
    made = prepared(tmp_path, {"": "scribble", "b": "points", "c": "mask"}, report=True)
    listed = DataList.load(made.path)
    # a tenth of 20 images twice, drawn from the 4 masks: nothing but scribbles is left to train on
    assert kinds_of(listed, "a") == ["scribble"] * 16
    assert [len(items) for _, items in listed.sites["a"].splits()] == [16, 2, 2]
    assert kinds_of(listed, "b") == ["points"] * 10
    assert kinds_of(listed, "c") == [None] * 8, "they are masks of 0 and 255"
    assert kinds_of(listed, "d") == [None] * 2
    assert {item.label_kind for item in listed.public} == {None}
    assert check_datalist(listed, root) == []
    [told] = [sentence for sentence in made.warnings if "no image has a mask" in sentence]
    assert told.startswith("nothing to measure with at b, d: no image has a mask")
    assert "scribble, 0% labelled" in made.report.read_text()


def test_a_site_that_is_not_named_has_masks(root, tmp_path):
    with pytest.raises(Refused) as caught:
        prepared(tmp_path, {"a": "scribble"})
    assert {problem.where.partition("/")[0] for problem in caught.value.problems} == {"b"}
    assert all("--label-kind [SITE=]KIND" in str(problem) for problem in caught.value.problems)


def test_what_could_be_a_mask_or_scribbles_without_foreground_is_refused(root, tmp_path):
    scribble(root / "a" / "masks" / "a_019.png", (0, 255))
    with pytest.raises(Refused) as caught:
        prepared(tmp_path, {"": "scribble"})
    told = "found only the values 0 and 255: a mask, or a weak label without foreground; write foreground as 1, that of"
    assert [told in str(problem) for problem in caught.value.problems] == [True] * 11
    assert "if its site has masks alone, --label-kind SITE=mask" in str(caught.value)
    assert not (tmp_path / "list.json").exists()


@pytest.mark.parametrize(
    ("label", "told"),
    [
        ([[1, 255]], "found foreground without background"),
        ([[0, 1, 2]], r"found other values \(2\); save it without loss"),
        ([[0, 1, 2, 255]], r"found other values \(2\)"),
        ([[[0, 1, 255]]], "expected 8-bit grey without loss, found PNG with 'RGB' pixels"),
    ],
)
def test_a_file_that_is_no_weak_label_is_refused_as_such(root, tmp_path, label, told):
    (root / "a" / "masks" / "a_019.png").write_bytes(png_of(np.array(label, np.uint8)))
    with pytest.raises(Refused, match=rf"a_019\.png: .*{told}"):
        prepared(tmp_path, {"": "scribble", "c": "mask"})


def test_labels_of_0_and_1_alone_may_have_0_for_what_is_not_labelled_and_are_refused(root, tmp_path):
    hospital(root, "c", 10, 10, 300)
    with pytest.raises(
        Refused, match=r"of c: .*found 10 labels without any 255: masks alone; write it so, into c/masks"
    ):
        prepared(tmp_path, {"": "scribble"})
    assert kinds_of(prepared(tmp_path, {"": "scribble", "c": "mask"}).datalist, "c") == [None] * 8


@pytest.mark.parametrize(
    ("kinds", "chosen", "told"),
    [
        ({"e": "box"}, {}, r"--label-kind: expected one of \['a', 'b', 'c', 'd', 'public'\], found the site 'e'"),
        ({"": "scribbles"}, {}, r"--label-kind of all sites: expected one of .*'scribbles'; did you mean 'scribble'"),
        ({"public": "box"}, {}, "--label-kind of public: expected masks: they are the public images, found 'box'"),
        ({"b": "box"}, {"unseen": ["b"]}, "--label-kind of b: expected masks: images of a site of --unseen are meas"),
        ({"d": "box"}, {}, "--label-kind of d: expected some of the kind box, found no labels"),
        ({"c": "box"}, {"classes": ["one", "two"]}, "c_000.png.*: expected a weak label: 0 background, 1 to 2 foregro"),
    ],
)
def test_a_declaration_that_cannot_be_is_refused(root, tmp_path, kinds, chosen, told):
    with pytest.raises(Refused, match=told):
        prepared(tmp_path, kinds, **chosen)


def test_all_sites_are_those_that_train(root, tmp_path):
    site(root, "b", 10, 10, first=200)
    made = prepared(tmp_path, {"": "block", "c": "mask"}, unseen=["b"])
    assert [len(items) for _, items in made.datalist.sites["b"].splits()] == [0, 0, 10]
    assert kinds_of(made.datalist, "a") == ["block"] * 16


def test_parts_of_a_site_keep_its_kind(root, tmp_path):
    made = prepared(tmp_path, {"": "box", "c": "mask"}, divide=2)
    assert kinds_of(made.datalist, "b-1") + kinds_of(made.datalist, "b-2") == ["box"] * 10


def test_the_command(root, tmp_path, capsys):
    words = ["folders", root, "--output", tmp_path / "list.json", "--no-report"]
    chosen = ["--public", "public", "--label-kind", "scribble", "--label-kind", "c=mask"]
    assert run(*words, *chosen) == 0
    assert kinds_of(DataList.load(tmp_path / "list.json"), "a") == ["scribble"] * 16
    said = capsys.readouterr().out
    assert "worth a look: nothing to measure with at b, d" in said
    assert "few to measure with at a, c:" in said, "more of b's images cannot be measured with"
    with pytest.raises(Refused, match="--label-kind: expected one for each, found two values for all sites"):
        run(*words, *chosen, "--label-kind", "box")
    with pytest.raises(Refused, match=r"--label-kind: expected nothing beside --test-only, with which .* found it; le"):
        run(*words, "--test-only", "--label-kind", "box")


def test_scribbles_of_several_classes_are_told_from_masks_by_255(tmp_path):
    root = tmp_path / "data"
    for name, values in (("public", (0, 2)), ("a", (0, 1, 2, 255)), ("b", (0, 1, 2))):
        site(root, name, 3, 0, first=len(name) * ord(name[0]))
        for path in sorted((root / name / "images").iterdir()):
            scribble(root / name / "masks" / f"{path.stem}.png", values)
    made = prepared(tmp_path, {"a": "scribble"}, classes=["one", "two"], validation=0, test=0)
    assert (kinds_of(made.datalist, "a"), kinds_of(made.datalist, "b")) == (["scribble"] * 3, [None] * 3)
    assert check_datalist(made.datalist, root) == []
    with pytest.raises(Refused, match=r"found the class values 255; .*if 255 is what was not labelled.*--label-kind"):
        prepared(tmp_path, {}, classes=["one", "two"])
