"""Synthetic volumes: NIfTI files with spacing and affine, and the list of slices that is made of them."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest

from samfed_monai.core.errors import Refused
from samfed_monai.core.io import read_json
from samfed_monai.data import DataList
from samfed_monai.data.datalist import read_list
from samfed_monai.data.synthetic import CLASSES, CT, MR, affine_of, render_volume, render_volumes
from tests.cli.test_prepare import run


def refused(*words: object) -> str:
    with pytest.raises(Refused) as caught:
        run(*words)
    return str(caught.value)


SMALL = {"volumes": 3, "public": 2, "size": (32, 40), "depth": 4}


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("volumes") / "vol"
    assert render_volumes(folder, **SMALL) == ["ct", "mr", "public"]
    return folder


def words(volumes, tmp_path, *more):
    classes = () if "--classes" in more else ("--classes", ",".join(CLASSES))
    given = ("--slices", tmp_path / "slices", "--public", "public", "--output", tmp_path / "list.json", "--no-report")
    return ("nifti", volumes, *given, *classes, "--validation", 0.3, "--test", 0.3, *more)


@pytest.mark.parametrize("scanner", [CT, MR], ids=["ct", "mr"])
def test_both_organs_are_there_and_brighter_than_what_surrounds_them(scanner):
    for index in range(4):
        grey, label = render_volume(np.random.default_rng(index), (48, 48, 8), scanner)
        assert set(np.unique(label)) == {0, 1, 2}
        muscle = scanner.values[2]
        assert all(np.median(grey[label == number]) > muscle for number in (1, 2))


def test_the_files_say_where_their_voxels_are(volumes):
    image = nibabel.load(volumes / "mr/images/mr_01.nii.gz")
    mask = nibabel.load(volumes / "mr/masks/mr_01.nii.gz")
    assert image.shape == mask.shape == (40, 32, 4)
    assert np.allclose(image.affine, affine_of(MR, image.shape), atol=1e-4)
    assert np.allclose(image.affine, mask.affine)
    assert np.allclose(image.header.get_zooms(), MR.spacing)
    assert np.linalg.det(nibabel.load(volumes / "ct/images/ct_01.nii.gz").affine) < 0  # the first axis is mirrored


def test_a_volume_depends_on_its_site_and_number_alone(volumes, tmp_path):
    render_volumes(tmp_path, **{**SMALL, "volumes": 1, "public": 0})
    assert (tmp_path / "ct/images/ct_01.nii.gz").read_bytes() == (volumes / "ct/images/ct_01.nii.gz").read_bytes()


def test_slices_say_which_volume_they_are_of_and_how_far_their_pixels_lie_apart(volumes, tmp_path):
    assert run(*words(volumes, tmp_path)) == 0
    datalist = DataList.load(tmp_path / "list.json")
    assert datalist.classes == list(CLASSES)
    items = [item for _, _, item in datalist.items() if item.volume == "mr/images/mr_02.nii.gz"]
    assert sorted(item.slice for item in items) == [1, 2, 3, 4]
    assert {tuple(item.spacing) for item in items} == {(1.8, 1.8, 4.0)}
    assert len({item.group for item in items}) == 1
    assert all(len(items) == 4 for _, items in datalist.sites["ct"].splits())  # a volume each


def test_the_values_of_classes_can_be_named(volumes, tmp_path):
    assert run(*words(volumes, tmp_path, "--classes", "spleen,kidney", "--label", 2, "--label", 1)) == 0
    datalist = DataList.load(tmp_path / "list.json")
    values = {value for _, _, item in datalist.items() for value in np.unique(mask_of(tmp_path, item))}
    assert values == {0, 1, 2}
    first = next(item for _, _, item in datalist.items() if item.volume == "ct/images/ct_01.nii.gz" and item.slice == 2)
    label = np.asarray(nibabel.load(volumes / "ct/masks/ct_01.nii.gz").dataobj)[:, :, 1].T
    assert np.array_equal(mask_of(tmp_path, first), np.array([0, 2, 1])[label])


def mask_of(tmp_path, item):
    from PIL import Image

    return np.array(Image.open(tmp_path / "slices" / item.label))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--classes", "liver,spleen", "--label", 1), "--label: expected one for each of ['liver', 'spleen']"),
        (("--classes", "kidney"), "--classes: expected the names of two classes or more"),
    ],
)
def test_classes_and_labels_that_do_not_fit_are_refused(volumes, tmp_path, more, message):
    assert message in refused(*words(volumes, tmp_path, *more))
    assert not (tmp_path / "slices").exists()


def test_a_site_whose_volumes_have_another_class_is_told_before_any_slice_is_cut(volumes, tmp_path):
    path = next((volumes / "mr/masks").glob("mr_03*"))
    before, mask = path.read_bytes(), nibabel.load(path)
    try:
        other = np.array(mask.dataobj)
        other[0, 0, 0] = 3
        nibabel.save(nibabel.Nifti1Image(other, mask.affine), path)
        told = refused(*words(volumes, tmp_path))
        assert "mr_03.nii.gz: expected 0 and 1 kidney, 2 spleen, found the labels 1, 2, 3; name every class" in told
        moved = mask.affine.copy()
        moved[0, 3] += 5
        nibabel.save(nibabel.Nifti1Image(np.array(mask.dataobj), moved), path)
        told = refused(*words(volumes, tmp_path))
        assert "mr_03.nii.gz: expected the affine of mr_03.nii.gz, found corners up to 5 mm from the volume's" in told
        nibabel.save(nibabel.Nifti1Image(np.array(mask.dataobj)[:-1], mask.affine), path)
        assert "mr_03.nii.gz: expected 40 x 32 x 4, as mr_03.nii.gz has, found 39 x 32 x 4" in refused(
            *words(volumes, tmp_path)
        )
    finally:
        path.write_bytes(before)
    assert not (tmp_path / "slices").exists()


def test_two_organs_without_names_are_refused_with_both_ways_out(volumes, tmp_path):
    given = ("--slices", tmp_path / "s", "--public", "public", "--output", tmp_path / "list.json")
    told = refused("nifti", volumes, *given)
    assert "say which are foreground: --label N, or name each as a class: --classes A,B" in told


def test_the_command_writes_volumes_and_says_what_comes_next(tmp_path, capsys):
    assert run("synthetic-volumes", tmp_path / "v", "--volumes", 1, "--size", 32, 32) == 0
    assert f"next    samfed prepare nifti {tmp_path / 'v'} --slices" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"volumes": 0}, r"synthetic -> volumes: expected a whole number in \[1, 512\], found 0"),
        (
            {"size": (16, 64)},
            r"synthetic -> size: expected \(H, W\), each at least 32 and at most 512, found \(16, 64\)",
        ),
        ({"depth": 2}, r"synthetic -> depth: expected a whole number in \[4, 512\]"),
    ],
)
def test_counts_and_sizes_out_of_range_are_refused(tmp_path, given, message):
    with pytest.raises(Refused, match=message):
        render_volumes(tmp_path, **given)


def test_a_slice_without_its_number_or_spacing_is_refused(volumes, tmp_path):
    run(*words(volumes, tmp_path))
    content = read_json(tmp_path / "list.json")
    content["public"][0] |= {"slice": 0, "spacing": [1, 2]}
    with pytest.raises(Refused) as caught:
        read_list(content, "list.json")
    told = str(caught.value)
    assert "list.json -> public#0#slice: expected at least 1, found 0" in told
    assert "list.json -> public#0#spacing: expected three lengths in mm, found [1, 2] (list)" in told
