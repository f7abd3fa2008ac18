"""NIfTI volumes: slices, masks on their grid, sites of volumes cut into pictures."""

from __future__ import annotations

import gzip
import itertools
from contextlib import nullcontext
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from samfed_monai.core.errors import Refused
from samfed_monai.core.io import undo_on_error, write_json
from samfed_monai.data.checks import Facts
from samfed_monai.data.datalist import DataList, Item, Site
from samfed_monai.data.quality_report import file_warnings
from samfed_monai.data.reading import read_mask
from samfed_monai.data.volumes import cut_nifti, nifti_of, read_mask_slices, read_slices, volumes_of
from tests.data.making import picture, save

AFFINE = np.array([[0.5, 0, 0, 1], [0, 0.25, 0, 2], [0, 0, 3, 4], [0, 0, 0, 1.0]])
EMPTY, MOVED = np.zeros((4, 3, 2), np.uint8), np.eye(4, k=3)


def saved(path: Path, data: np.ndarray, affine: np.ndarray | None = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(data, affine), path)
    return path


SHEARED = np.array([[0.0, 0.3, 0, 5], [-0.4, 0.4, 0.5, 6], [0, 0, 1.2, 7], [0, 0, 0, 1.0]])


@pytest.mark.parametrize(
    ("affine", "unit", "area", "voxel"),
    [
        (AFFINE, "mm", 0.125, (0.25, 0.5, 3)),  # rows run along Y
        (AFFINE, "unknown", 0.125, (0.25, 0.5, 3)),
        (AFFINE, "micron", 0.125e-6, (0.25e-3, 0.5e-3, 3e-3)),
        (AFFINE, "meter", 0.125e6, (250, 500, 3000)),
        (np.diag([0.5, 0.5, 2, 1]), "mm", 0.25, (0.5, 0.5, 2)),
        (np.diag([-0.5, 0.25, -3, 1]), "mm", 0.125, (0.25, 0.5, 3)),
        (SHEARED, "mm", 0.12, (0.5, 0.4, 1.3)),  # |(0, -0.4, 0) x (0.3, 0.4, 0)|, not 0.4 * 0.5
    ],
)
def test_voxel_sizes_follow_affine_and_unit(tmp_path, affine, unit, area, voxel):
    image = nibabel.Nifti1Image(EMPTY, affine)
    image.header["pixdim"][1:4] = 1
    image.header.set_xyzt_units(xyz=unit)
    nibabel.save(image, tmp_path / "a.nii")
    found = read_slices(tmp_path / "a.nii")
    assert found.pixel_area == pytest.approx(area)
    assert found.voxel == pytest.approx(voxel)


def test_grey_values_are_scaled_by_volume_percentiles(tmp_path):
    data = np.linspace(-1000, 1000, 201).reshape(201, 1, 1).astype(np.int16)
    grey = read_slices(saved(tmp_path / "a.nii", data)).pictures[0, 0, :, 0]
    # 0.5 % of 200 steps is 1 step: black at -990, white at 990, and 0 in the middle
    assert grey[[0, 1, 2, 100, 199, 200]].tolist() == [0, 0, 1, 128, 255, 255]


def test_colours_single_slice_and_singleton_axes_are_read(tmp_path):
    rgb = np.random.default_rng(0).integers(0, 256, (4, 3, 2, 3)).astype(np.uint8)
    packed = rgb.view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0]
    assert np.array_equal(read_slices(saved(tmp_path / "rgb.nii", packed)).pictures, rgb.transpose(2, 1, 0, 3))
    flat = saved(tmp_path / "flat.nii", rgb[..., 0, 0])
    assert read_slices(flat).pictures.shape == (1, 3, 4, 3)
    assert nibabel.load(_written(tmp_path, [np.ones((3, 4), bool)], flat)).shape == (4, 3)
    assert read_slices(saved(tmp_path / "deep.nii", rgb[:, :, :, :1])).pictures.shape == (2, 3, 4, 3)


def _written(folder: Path, masks: list[np.ndarray], like: Path) -> Path:
    path = folder / "mask.nii.gz"
    path.write_bytes(nifti_of(masks, like))
    return path


@given(st.lists(st.lists(st.booleans(), min_size=12, max_size=12), min_size=1, max_size=4))
def test_mask_round_trip_keeps_voxels_and_affine(tmp_path_factory, slices):
    folder = tmp_path_factory.mktemp("volume")
    masks = np.array(slices).reshape(-1, 3, 4)
    volume = saved(folder / "a.nii", np.where(masks.transpose(2, 1, 0), 200, 50).astype(np.uint8))
    seen = read_slices(volume).pictures[..., 0] > 100  # exactly the bright voxels are found
    path = _written(folder, list(seen), volume)
    assert path.read_bytes() == nifti_of(list(seen), volume), "the same masks are the same bytes"
    found = nibabel.load(path)
    assert np.array_equal(found.affine, AFFINE)
    assert found.get_data_dtype() == np.uint8
    assert np.array_equal(np.asarray(found.dataobj), np.asarray(nibabel.load(volume).dataobj) > 100)
    assert np.array_equal(read_mask_slices(path, volume), masks)


def test_qform_and_sform_are_kept(tmp_path):
    image = nibabel.Nifti1Image(EMPTY, AFFINE)
    other = np.diag([2.0, 2.0, 2.0, 1.0])
    image.set_qform(other, 1)
    image.set_sform(AFFINE, 2)
    image.header.set_xyzt_units("mm", "sec")
    nibabel.save(image, tmp_path / "a.nii")
    found = nibabel.load(_written(tmp_path, [np.ones((3, 4), bool)] * 2, tmp_path / "a.nii"))
    for wanted, (matrix, code) in ((other, found.get_qform(coded=True)), (AFFINE, found.get_sform(coded=True))):
        assert np.allclose(matrix, wanted)
        assert code == (1 if wanted is other else 2)
    assert found.header.get_xyzt_units() == ("mm", "sec")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.zeros((4, 3, 2, 5), np.int16), r"found int16 of 4 x 3 x 2 x 5"),
        (np.zeros((4, 3, 2, 3), np.uint8), r"found uint8 of 4 x 3 x 2 x 3; save each volume or channel as a sep"),
        (np.zeros((4, 3, 2), np.complex64), r"found complex64 of 4 x 3 x 2"),
        (np.zeros((4, 3, 0), np.int16), r"found int16 of 4 x 3 x 0"),
        (np.full((2, 2, 1), np.nan, np.float32), r"found values that are NaN or infinite; replace them"),
    ],
)
def test_invalid_volume_is_refused(tmp_path, data, message):
    with pytest.raises(Refused, match=message):
        read_slices(saved(tmp_path / "a.nii.gz", data))


def test_pixdim_gives_sizes_without_qform_and_sform(tmp_path):
    image = nibabel.Nifti1Image(EMPTY, None)
    image.header.set_zooms((1 / 3, 2 / 3, 4 / 3))
    nibabel.save(image, tmp_path / "a.nii")
    assert read_slices(tmp_path / "a.nii").voxel == (0.666667, 0.333333, 1.333333)
    with pytest.raises(Refused, match=r"no orientation \(qform_code and sform_code are 0\); leave out --reorient"):
        read_slices(tmp_path / "a.nii", reorient=True)
    with pytest.raises(Refused, match="expected a volume of three axes to reorient, found a picture"):
        read_slices(saved(tmp_path / "b.nii", EMPTY[..., 0]), reorient=True)


@pytest.mark.parametrize(
    ("qform", "sform", "other", "message"),
    [
        (None, np.diag([0.5, 0, 2, 1]), {}, "an affine in which voxels have no extent; export it again"),
        (None, np.diag([np.nan, 1, 1, 1]), {}, "an affine in which voxels have no extent"),
        (AFFINE, AFFINE, {"quatern_b": np.nan}, "an affine in which voxels have no extent"),
        (np.eye(4), AFFINE, {}, "a qform of 1 x 1 x 1, RAS and a sform of 0.5 x 0.25 x 3, RAS; keep the right one"),
        (np.eye(4), np.diag([-1, -1, 1, 1]), {}, "a qform of 1 x 1 x 1, RAS and a sform of 1 x 1 x 1, LPS"),
        (np.eye(4)[:, [2, 0, 1, 3]], AFFINE[:, [2, 0, 1, 3]], {}, "SRA and a sform of 3 x 0.5 x 0.25, SRA"),
        (None, AFFINE, {"xyzt_units": 5}, "expected readable units and qform"),
        (AFFINE, None, {"pixdim": [1, 0.5, 0, 3, 1, 1, 1, 1]}, "above 0, found voxel sides of 0.5 x 0.0 x 3.0 .pixdim"),
        (None, None, {"pixdim": [1, 0.5, 1, -3, 1, 1, 1, 1]}, "above 0, found voxel sides of 0.5 x 1.0 x -3.0 .pixdim"),
        (None, AFFINE, {"vox_offset": 0}, "from the end of the header to the end .*, found .* in bytes 0 to 24"),
        (None, AFFINE, {"dim": [3, 4, 3, 1, 1, 1, 1, 1]}, "found voxels in bytes 352 to 364; correct dim or vox"),
        (AFFINE + 9 * np.eye(4, k=3), AFFINE, {}, None),  # translated
    ],
)
def test_header_with_invalid_geometry_is_refused(tmp_path, qform, sform, other, message):
    image = nibabel.Nifti1Image(EMPTY + np.uint8(1), AFFINE)
    image.set_qform(qform, 0 if qform is None else 1)
    header, voxels = image.header.copy(), image.to_bytes()[352:]
    for key, value in {"vox_offset": 352, **other}.items():
        header[key] = value
    header["srow_x"], header["srow_y"], header["srow_z"] = (AFFINE if sform is None else sform)[:3]
    header["sform_code"] = int(sform is not None)
    (tmp_path / "a.nii").write_bytes(header.binaryblock + bytes(4) + voxels)
    with pytest.raises(Refused, match=message) if message else nullcontext():
        assert read_slices(tmp_path / "a.nii").pixel_area == pytest.approx(0.125)


@pytest.mark.parametrize("order", itertools.permutations(range(3)))
def test_reorientation_round_trip_keeps_original_axes_of_mask(tmp_path, order):
    ras = np.arange(1, 25, dtype=np.uint8).reshape(4, 3, 2)
    for signs in itertools.product((1, -1), repeat=3):
        data = np.flip(ras, [axis for axis, sign in enumerate(signs) if sign < 0]).transpose(order)
        affine = np.eye(4)
        affine[:3, :3] = (np.diag(signs) @ np.diag([0.5, 0.25, 3]))[:, order]
        path = saved(tmp_path / "a.nii", data, affine)
        found = read_slices(path, reorient=True)
        assert np.array_equal(found.pictures[..., 0], ras.transpose(2, 1, 0)), signs
        assert (found.pixel_area, found.voxel) == (pytest.approx(0.125), pytest.approx((0.25, 0.5, 3)))
        assert np.array_equal(read_mask_slices(path, path, labels=[7], reorient=True), ras.transpose(2, 1, 0) == 7)
        (tmp_path / "m.nii.gz").write_bytes(nifti_of(list(found.pictures[..., 0]), path, reorient=True))
        mask = nibabel.load(tmp_path / "m.nii.gz")
        assert np.array_equal(np.asarray(mask.dataobj), data)
        assert np.array_equal(mask.affine, affine)


@pytest.mark.parametrize(("slope", "inter"), [(1 / 255, 0), (3e-5, 0.0), (1 / 32767, 0.5)])
def test_scaled_mask_values_are_rounded_to_whole_numbers(tmp_path, slope, inter):
    volume = saved(tmp_path / "a.nii", EMPTY)
    wanted = np.arange(24).reshape(4, 3, 2) % 3
    image = nibabel.Nifti1Image(np.rint((wanted - inter) / slope).astype(np.int32), AFFINE)
    content = bytearray(image.to_bytes())
    content[112:120] = np.array([slope, inter], "<f4").tobytes()
    (tmp_path / "m.nii").write_bytes(content)
    assert not np.array_equal(np.asarray(nibabel.load(tmp_path / "m.nii").dataobj), wanted)
    found = read_mask_slices(tmp_path / "m.nii", volume, classes=["one", "two"])
    assert np.array_equal(found, wanted.transpose(2, 1, 0))


def test_damaged_files_are_refused(tmp_path):
    whole = saved(tmp_path / "a.nii.gz", np.random.default_rng(0).integers(0, 255, (64, 64, 8)).astype(np.uint8))
    (tmp_path / "cut.nii.gz").write_bytes(whole.read_bytes()[:2000])
    (tmp_path / "end.nii.gz").write_bytes(whole.read_bytes()[:-8])  # all voxels, but no CRC
    (tmp_path / "text.nii").write_text("no volume")
    (tmp_path / "packed.nii.gz").write_bytes(gzip.compress(b"no volume"))
    whole.rename(tmp_path / "a.Nii.gz")
    others = {"gone.nii": "no such file; check the path", "a.Nii.gz": "a suffix in mixed case; write .nii or .nii.gz"}
    damaged = ("cut.nii.gz", "end.nii.gz", "text.nii", "packed.nii.gz")
    for name, found in {**dict.fromkeys(damaged, ""), **others}.items():
        with pytest.raises(Refused, match=rf"{name}: expected a NIfTI volume, found {found}"):
            read_slices(tmp_path / name)


def test_labels_are_selected_and_classes_have_separate_values(tmp_path):
    data = np.arange(24).reshape(4, 3, 2) % 3
    volume = saved(tmp_path / "a.nii", EMPTY)
    mask = saved(tmp_path / "m.nii", data.astype(np.float32))  # whole numbers, as some programs store them
    values = data.transpose(2, 1, 0)
    assert np.array_equal(read_mask_slices(mask, volume, labels=[2]), values == 2)
    assert np.array_equal(read_mask_slices(mask, volume, labels=[1, 2]), values > 0)
    assert not read_mask_slices(mask, volume, labels=[9]).any()
    named = read_mask_slices(mask, volume, labels=[2, 1], classes=["spleen", "kidney"])
    assert np.array_equal(named, np.array([0, 2, 1])[values])
    text = r"m\.nii: expected one besides 0, found the labels 1, 2; name .* give with --label N"
    with pytest.raises(Refused, match=text):
        read_mask_slices(mask, volume)
    mask = saved(tmp_path / "m.nii", (data + 1).astype(np.uint8))
    with pytest.raises(Refused, match="expected 0 and 1 kidney, 2 spleen, found the labels 1, 2, 3; name every value"):
        read_mask_slices(mask, volume, classes=["kidney", "spleen"])


def test_scribbles_are_refused_as_masks(tmp_path):
    one, two = {"labels": [1]}, {"labels": [1, 2], "classes": ["kidney", "spleen"]}
    volume, held = saved(tmp_path / "a.nii", EMPTY), {"one besides 0": {}, "0 and 1": one, "0 and 1 kidney, 2 sp": two}
    for values, expected in [([1], "one besides 0"), ([1], "0 and 1"), ([], "0 and 1"), ([1], "0 and 1 kidney, 2 sp")]:
        mask = saved(tmp_path / "m.nii", np.resize(np.uint8([0, *values, 255]), EMPTY.shape))
        text = f"expected {expected}.*, found the labels .*255; .*; if 255 is background, set it to 0; if 255 m"
        with pytest.raises(Refused, match=text):
            read_mask_slices(mask, volume, **held[expected])
    mask = saved(tmp_path / "m.nii", np.resize(np.uint8([0, 1, 9, 255]), EMPTY.shape))
    assert set(np.unique(read_mask_slices(mask, volume, **one))) == {0, 1}, "255 is one structure of several"
    assert read_mask_slices(mask, volume, labels=[1, 9, 255], classes=["a", "b", "c"]).max() == 3


@pytest.mark.parametrize(
    ("mask", "affine", "message"),
    [
        (np.zeros((4, 2, 2), np.uint8), AFFINE, "expected 4 x 3 x 2, as in a.nii, found 4 x 2 x 2 voxels; export"),
        (np.zeros((4, 3), np.uint8), AFFINE, "expected 4 x 3 x 2, as in a.nii, found 4 x 3 voxels"),
        (EMPTY, np.diag([0.5, 0.25, 3, 1]), r"affine of a.nii, found corners up to 4.583 m.*; if the grid is the same"),
        (EMPTY, AFFINE @ np.diag([-1, 1, 1, 1]), "up to 3 mm from the volume's; resample the mask to the volume$"),
        (np.full((4, 3, 2), 0.5, np.float32), AFFINE, "expected whole numbers: 0 and the value of the mask, found val"),
        (np.zeros((4, 3, 2), [("R", "u1"), ("G", "u1"), ("B", "u1")]), AFFINE, "found colours"),
        (np.ones((4, 3, 2), np.complex64), AFFINE, "found complex numbers"),
        (np.full((4, 3, 2), np.nan, np.float32), AFFINE, "found values such as nan"),
        (np.full((4, 3, 2), 1.002, np.float32), AFFINE, "values such as 1.00199997; threshold it, or save it as"),
        # a tenth of a voxel is accepted, whose smallest side is 0.25 mm
        (EMPTY + 1, AFFINE + 0.024 * MOVED, None),
        (EMPTY + 1, AFFINE + 0.026 * MOVED, "m.nii: expected the affine of a.nii, found corners up to 0.026 mm"),
    ],
)
def test_mask_with_different_grid_or_invalid_values_is_refused(tmp_path, mask, affine, message):
    with pytest.raises(Refused, match=message) if message else nullcontext():
        assert read_mask_slices(saved(tmp_path / "m.nii", mask, affine), saved(tmp_path / "a.nii", EMPTY)).all()


def test_volumes_are_cut_into_slices_with_masks(tmp_path):
    data = np.random.default_rng(0).integers(0, 255, (8, 6, 3)).astype(np.uint8)
    saved(tmp_path / "in/a/images/p1.nii.gz", data)
    saved(tmp_path / "in/a/masks/p1_mask.nii.gz", (data > 100).astype(np.uint8))
    saved(tmp_path / "in/a/masks/gone.nii", np.zeros((2, 2, 2), np.uint8))
    for name in ("b/images/sub/p1.nii", "b/labelsTr/p1.nii", "c/imagesTr/p3.nii", "images/p4.nii"):
        saved(tmp_path / "in" / name, data[..., :1])
    warnings = cut_nifti(tmp_path / "in", tmp_path / "out")
    holds, unread = "has images or archives, such as", "but no folder 'images', and was not read: if it is a site,"
    assert warnings == [
        f"c {holds} c/imagesTr/p3.nii, {unread} rename c/imagesTr to c/images",
        f"images {holds} images/p4.nii, {unread} unpack, convert or move them to <site>/images",
        "1 mask of a belongs to no image; left out, such as gone.nii; name each mask after its image: <stem>, "
        "<stem>_segmentation or <stem>_mask",
        "b has no folder 'masks', and b/labelsTr was not read: if it has b's masks, rename it to b/masks",
    ]
    files = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.png")}
    names = [f"p1/p1_000{number}.png" for number in (1, 2, 3)]
    assert files == {f"a/{kind}/{name}" for kind in ("images", "masks") for name in names} | {
        "b/images/sub_p1/sub_p1_0001.png"
    }
    for number in (1, 2, 3):
        seen = data[..., number - 1].T
        shown = np.array(Image.open(tmp_path / f"out/a/images/p1/p1_000{number}.png"))
        assert np.array_equal(shown, np.repeat(seen[..., None], 3, axis=-1)), "8 bits as they are, x to the right"
        assert np.array_equal(read_mask(tmp_path / f"out/a/masks/p1/p1_000{number}.png"), seen > 100)
    assert cut_nifti(tmp_path / "in", tmp_path / "out") == warnings  # once more: nothing is in the way
    (tmp_path / "in/b").rename(tmp_path / "withdrawn")
    other = save(tmp_path / "out/a/masks/p1/p1_0004.png", picture(0))
    none = r"expected only slices of volumes and masks of DIR, found 1 other slice, such as"
    with pytest.raises(Refused, match=rf"a/masks/p1: {none} p1_0004\.png.*\n.*b/images/sub_p1: {none} sub_p1_0001\."):
        cut_nifti(tmp_path / "in", tmp_path / "out")
    (tmp_path / "withdrawn").rename(tmp_path / "in/b")
    other.unlink()
    (tmp_path / "out/a/masks/p1/p1_0002.png").write_bytes(b"mine")
    with pytest.raises(Refused, match=r"p1_0002\.png: expected no file, or an identical one, found another"):
        cut_nifti(tmp_path / "in", tmp_path / "out")


def test_problems_are_refused_together_and_nothing_is_written(tmp_path):
    for name in ("in/a/images/twin/one", "in/a/images/twin_one", "masks/a/images/shape", "masks/a/images/place"):
        saved(tmp_path / f"{name}.nii", EMPTY)
    saved(tmp_path / "masks/a/masks/shape.nii", EMPTY[..., :1])
    saved(tmp_path / "masks/a/masks/place.nii", EMPTY, np.eye(4))
    save(tmp_path / "in/b/images/photo.png", picture(0))
    with pytest.raises(Refused) as refused:  # before any volume is read
        cut_nifti(tmp_path / "in", tmp_path / "in/out", labels=[0], classes=["liver", "spleen"])
    error = str(refused.value)
    assert "--label: expected each value once, without 0 (the background), found the values 0" in error
    assert "--slices: expected a folder outside" in error
    with pytest.raises(Refused, match=r"--slices: expected a folder, found the file .*\.nii;"):
        cut_nifti(tmp_path / "in/b", saved(tmp_path / "file.nii", EMPTY))
    assert "--label: expected one for each of ['liver', 'spleen'], in this order, found 1 values; give it once" in error
    assert "expected NIfTI volumes (.nii, .nii.gz), found no images; b/images: not read: 1 picture (photo" in error
    assert "expected one volume of this name per site, found a second twin_one" in error
    affine = "2 problems.* expected the affine of place.nii, found corners up to 6.403 mm from the volume's.*"
    with pytest.raises(Refused, match=f"(?s){affine} expected 4 x 3 x 2, as in shape.nii, found 4 x 3 x 1 voxels"):
        cut_nifti(tmp_path / "masks", tmp_path / "in/out")
    assert not (tmp_path / "in/out").exists()
    with pytest.raises(Refused, match="expected a folder of images, found no such folder; the layout is DIR/<site>/im"):
        cut_nifti(tmp_path / "nowhere", tmp_path / "out")


def test_label_missing_in_all_masks_is_refused_except_for_classes(tmp_path):
    data = np.arange(24, dtype=np.uint8).reshape(4, 3, 2)
    for name, mask in (("a", data % 3), ("b", data * 0)):
        saved(tmp_path / f"in/a/images/{name}.nii", data)
        saved(tmp_path / f"in/a/masks/{name}.nii", mask)
    for labels, rest in (([7, 9], "the value of foreground in masks, found 7 and 9, which"), ([2, 2], "each value on")):
        with pytest.raises(Refused, match=f"1 problem\n  - --label: expected {rest}"):
            cut_nifti(tmp_path / "in", tmp_path / "out", labels=labels)
    assert not (tmp_path / "out").exists()
    named, other = tmp_path / "in/a/dataset.json", {"labels": [1, 7], "classes": ["liver", "spleen"]}
    for text, message in (
        ('{"Liver": 1, "spleen": 2}', "spleen: expected 7, as .*, found 2 for spleen; give --classes in"),
        ('{"0": "background", "2": "spleen"}', "2: expected 7, as .*, found 2 for spleen; give --classes in"),
        ('{"stomach": 1, "all": [1, 7]}', "stomach: expected liver, as .*, found 1 for stomach; .* correct the file"),
    ):
        named.write_text(f'{{"labels": {text}}}')
        with pytest.raises(Refused, match=f"1 problem\n  - .*a/dataset.json -> labels#{message}"):
            cut_nifti(tmp_path / "in", tmp_path / "out", **other)
    named.write_text('["another program\'s"]')
    cut_nifti(tmp_path / "in", tmp_path / "out", **other)


def test_foreground_value_must_be_equal_in_all_masks(tmp_path):
    for name, value in (("a", 1), ("b", 255), ("c", 0)):
        saved(tmp_path / f"in/a/images/{name}.nii", np.arange(24, dtype=np.uint8).reshape(4, 3, 2))
        saved(tmp_path / f"in/a/masks/{name}.nii", np.full((4, 3, 2), value, np.uint8))
    cut_nifti(tmp_path / "in", tmp_path / "out")
    saved(tmp_path / "in/a/masks/c.nii", np.full((4, 3, 2), 4, np.uint8))
    with pytest.raises(Refused, match=r"--label: expected the same foreground val.*, found 1 in a/masks/a.nii and 4"):
        cut_nifti(tmp_path / "in", tmp_path / "other")


def test_nnunet_names_are_read_and_multiple_channels_refused(tmp_path):
    numbered = ("images/n_0000", "masks/n_0000", "images/n_0007", "masks/n_0007")
    for name in ("images/a_1_0000", "masks/a_1", "images/a_2_0000", *numbered):
        saved(tmp_path / f"in/a/{name}.nii.gz", EMPTY)
    saved(tmp_path / "in/b/images/b_0000.nii.gz", EMPTY)  # no mask; called as the others are
    cut_nifti(tmp_path / "in", tmp_path / "out")
    folders = {path.parent.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.png")}
    cases = {"a/images/a_1", "a/masks/a_1", "a/images/a_2", "b/images/b", *(f"a/{name}" for name in numbered)}
    assert folders == cases, "a table of patients names cases, which have no channel"
    for name in ("a_1_0001", "a_2_0001"):
        saved(tmp_path / f"in/a/images/{name}.nii.gz", EMPTY)
    message = r"(?s)a_1_0001\.nii.* one channel .*, found a further channel.*a_2_0001\.nii.* a further channel"
    with pytest.raises(Refused, match=message):
        cut_nifti(tmp_path / "in", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_uniform_slices_without_mask_are_skipped_and_counted(tmp_path):
    data, drawn = np.zeros((4, 3, 4), np.uint8), np.zeros((4, 3, 4), np.uint8)
    data[0, 0, 1] = drawn[0, 0, 2] = 1
    saved(tmp_path / "in/a/images/p.nii", data)
    saved(tmp_path / "in/a/masks/p.nii", drawn)
    assert cut_nifti(tmp_path / "in", tmp_path / "out") == ["2 slices of a single grey value left out"]
    kept = {path.relative_to(tmp_path / "out/a").as_posix() for path in (tmp_path / "out").rglob("*.png")}
    assert kept == {f"{kind}/p/p_000{number}.png" for kind in ("images", "masks") for number in (2, 3)}


def test_spacing_is_dropped_for_named_sites(tmp_path):
    saved(tmp_path / "in/a/images/p1.nii", EMPTY)
    saved(tmp_path / "in/b/images/p2.nii", EMPTY, np.diag([0.5, 0.5, 6.0, 1.0]))
    assert cut_nifti(tmp_path / "in", tmp_path / "without", without_spacing=["b"]) == []
    assert [note["spacing"] for note in volumes_of(tmp_path / "without").values()] == [[0.25, 0.5, 3.0], None]
    with pytest.raises(Refused, match=r"--without-spacing: expected one of \['a', 'b'\], found 'c'; name a site"):
        cut_nifti(tmp_path / "in", tmp_path / "other", without_spacing=["c"])


def test_other_file_named_as_record_of_volumes_is_refused(tmp_path):
    for content, message in (
        (["a"], r"found \['a'\] \(list\); cut the volumes again, or move the file away if it is not from `samfed"),
        ({"a": {"volume": 1, "spacing": None}}, "a#volume: expected a string, found 1"),
        ({"a": {"volume": "v", "spacing": [1, 2], "patient": 3}}, "a#patient: expected one of .*a#spacing: .* in mm"),
    ):
        write_json(tmp_path / "volumes.json", content)
        with pytest.raises(Refused, match=rf"(?s)/volumes\.json.*{message}"):
            volumes_of(tmp_path)


def test_axes_are_reported_or_reoriented(tmp_path):
    data = np.arange(24, dtype=np.uint8).reshape(4, 3, 2)
    for name in ("ras", "too"):
        saved(tmp_path / f"in/a/images/{name}.nii", data)
    for kind, values in (("images", data), ("masks", (data == 7).astype(np.uint8))):
        saved(tmp_path / f"in/a/{kind}/sra.nii", values.transpose(2, 0, 1), AFFINE[:, [2, 0, 1, 3]])
    [axes] = cut_nifti(tmp_path / "in", tmp_path / "as_they_are")
    assert "2 RAS (such as ras.nii), 1 SRA (such as sra.nii); slices are cut along the last axis of each, so" in axes
    assert "--reorient reorients all to RAS+" in axes
    assert cut_nifti(tmp_path / "in", tmp_path / "out", reorient=True) == []
    for number in (1, 2):
        seen = [np.array(Image.open(tmp_path / f"out/a/images/{n}/{n}_000{number}.png")) for n in ("ras", "sra")]
        assert np.array_equal(*seen)
        assert np.array_equal(read_mask(tmp_path / f"out/a/masks/sra/sra_000{number}.png"), seen[0][..., 0] == 7)


def files_in(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("slices", ["out", "new"])
def test_files_of_refused_command_are_removed(tmp_path, slices):
    saved(tmp_path / "in/a/images/one.nii", EMPTY)
    cut_nifti(tmp_path / "in", tmp_path / "out")
    before = files_in(tmp_path / "out")
    saved(tmp_path / "in/a/images/two.nii", EMPTY + 1)

    def refused_later() -> None:
        with undo_on_error() as written:
            cut_nifti(tmp_path / "in", tmp_path / slices, written=written)
            assert files_in(tmp_path / slices) != before
            raise Refused([])

    with pytest.raises(Refused):
        refused_later()
    assert files_in(tmp_path / "out") == before
    assert not (tmp_path / "out/a/images/two").exists()
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("voxels", "shown"),
    [
        ({"a": [(1, 1, 2)], "b": [(1, 1, 3)]}, []),  # 1.5 times as long
        ({"a": [(1, 1, 2), (1, 1, 3.1)], "b": []}, ["a 1 x 1 x 2 to 3.1"]),
        ({"a": [(0.25, 0.5, 3)], "b": [(0.5, 0.5, 6)]}, ["a 0.25 x 0.5 x 3, b 0.5 x 0.5 x 6"]),
        ({"a": [(1, 1, 2)], "b": [(1, 2, 2), (1, 2, 2)]}, ["a 1 x 1 x 2, b 1 x 2 x 2"]),
        ({}, []),
    ],
)
def test_different_voxel_sizes_within_or_between_sites_are_reported(voxels, shown):
    listed = DataList("list", [], {site: Site() for site in voxels})
    for site, sides in ((site, sides) for site, found in voxels.items() for sides in found):
        items = listed.sites[site].unlabelled
        items.append(Item(f"{site}{len(items)}.png", "", spacing=list(sides)))
    notes = file_warnings(listed, [Facts(item.image) for _, _, item in listed.items()])
    assert [sentence.partition("(mm of rows, columns, slices): ")[2].partition(";")[0] for sentence in notes] == shown
