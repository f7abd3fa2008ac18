"""Masks out of COCO files and NIfTI volumes: drawn exactly, beside their images, or refused before anything is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image

from samfed_monai.core.errors import Refused
from samfed_monai.data.coco import annotations_of, coco_of, draw_coco
from samfed_monai.data.folders import taken_back_if_refused
from samfed_monai.data.volumes import cut_nifti, unlike_voxels, volumes_of
from tests.data.making import disc, picture, save


def mask_at(path: Path) -> np.ndarray:
    return np.array(Image.open(path)) > 0


class TestCoco:
    pytest.importorskip("pycocotools", reason="pycocotools is not installed: pip install samfed-monai[coco]")

    @staticmethod
    def site(root: Path, name: str, masks: list[np.ndarray | None], *, file: str = "annotations/a.json") -> list[Any]:
        """Pictures 0.png, 1.png, … and their annotations; ``None`` is a picture that the file lists without any."""
        pictures, annotations = [], []
        for number, mask in enumerate(masks):
            save(root / name / "images" / f"{number}.png", picture(number))
            pictures.append({"file_name": f"{number}.png", "height": 24, "width": 32})
            annotations.append([] if mask is None else list(annotations_of(mask)))
        path = root / name / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(coco_of(pictures, annotations, ["lesion"])))
        return pictures

    def test_masks_are_those_that_were_annotated(self, tmp_path):
        first, second = np.array(disc()) > 0, np.array(disc(radius=4)) > 0
        ring = first & ~second  # run lengths
        self.site(tmp_path, "a", [first, ring, None])
        self.site(tmp_path, "b", [second], file="b.json")
        save(tmp_path / "c" / "images" / "0.png", picture(9))  # a site without annotations is left alone
        said = draw_coco(tmp_path, output=tmp_path / "list.json")
        assert said == ["1 picture of a has no annotation: taken as unlabelled"]
        assert np.array_equal(mask_at(tmp_path / "a/masks/0.png"), first)
        assert np.array_equal(mask_at(tmp_path / "a/masks/1.png"), ring)
        assert np.array_equal(mask_at(tmp_path / "b/masks/0.png"), second)
        assert sorted(path.name for path in tmp_path.rglob("masks/*")) == ["0.png", "0.png", "1.png"]
        assert draw_coco(tmp_path, blank_is_empty=True) == []  # once more: nothing is in the way
        assert not mask_at(tmp_path / "a/masks/2.png").any()
        with pytest.raises(
            Refused, match=r"a/masks/2\.png: expected none: its picture has no annotation, found a mask"
        ):
            draw_coco(tmp_path)  # the empty one, which would be taken for true

    def test_names_with_folders_and_the_list_beside_a_single_site(self, tmp_path):
        mask = np.array(disc()) > 0
        pictures = self.site(tmp_path, ".", [mask, mask])
        pictures[0]["file_name"], pictures[1]["file_name"] = "images/0.png", "upload/somewhere/1.png"
        content = coco_of(pictures, [list(annotations_of(mask))] * 2, ["lesion"])
        (tmp_path / "annotations" / "a.json").write_text(json.dumps(content))
        (tmp_path / "list.json").write_text("{}")
        draw_coco(tmp_path, output=tmp_path / "list.json")
        assert sorted(path.name for path in (tmp_path / "masks").iterdir()) == ["0.png", "1.png"]

    @pytest.mark.parametrize(
        ("image", "listed", "mask"),
        [
            ("a b.png", "a%20b.png", "a b"),
            ("50%25.png", "50%25.png", "50%25"),  # its own name counts first
            ("p1/0.png", "images\\p1\\0.png", "0"),
            ("0.png", "https://host/p9/0.png", "0"),
            ("0.png", "../images/0.png", "0"),  # only compared, never opened
            ("Su\u0308d.png", "S\u00fcd.png ", "S\u00fcd"),
            ("p1/0.png", "p2/0.png", None),
            ("0.png", "1.png", None),
        ],
    )
    def test_names_are_compared_from_their_end(self, tmp_path, image, listed, mask):
        [entry] = self.site(tmp_path, "a", [np.array(disc()) > 0])
        (tmp_path / "a/images/0.png").unlink()
        save(tmp_path / "a/images" / image, picture(0))
        content = coco_of([{**entry, "file_name": listed}], [list(annotations_of(np.array(disc()) > 0))], ["lesion"])
        (tmp_path / "a/annotations/a.json").write_text(json.dumps(content))
        if mask is None:
            with pytest.raises(Refused, match="found no such image; add it, or take its entry out"):
                draw_coco(tmp_path)
        else:
            assert draw_coco(tmp_path) == []
            assert [path.stem for path in (tmp_path / "a/masks").iterdir()] == [mask]

    def test_masks_of_images_of_one_name_go_into_their_folders_and_others_are_counted(self, tmp_path):
        pictures = self.site(tmp_path, "a", [np.array(disc()) > 0] * 3)
        for number in (0, 1):
            save(tmp_path / f"a/images/p{number}/0.png", picture(5 + number))
            pictures[number] = {**pictures[number], "file_name": f"p{number}/0.png"}
        (tmp_path / "a/images/0.png").unlink()
        content = coco_of(pictures, [list(annotations_of(np.array(disc()) > 0))] * 3, ["lesion"])
        (tmp_path / "a/annotations/a.json").write_text(json.dumps(content))
        assert draw_coco(tmp_path) == ["1 picture of a is in no COCO file, such as a/images/1.png"]
        drawn = sorted(path.relative_to(tmp_path / "a/masks").as_posix() for path in tmp_path.rglob("masks/**/*.png"))
        assert drawn == ["2.png", "p0/0.png", "p1/0.png"]
        pictures[0]["file_name"] = "0.png"
        (tmp_path / "a/annotations/a.json").write_text(json.dumps(coco_of(pictures, [[]] * 3, ["lesion"])))
        with pytest.raises(Refused, match="found 2 images of that name"):
            draw_coco(tmp_path)

    def test_everything_is_refused_at_once_and_nothing_written(self, tmp_path):
        mask = np.array(disc()) > 0
        self.site(tmp_path, "a", [mask, mask, mask])
        (tmp_path / "a/images/0.png").unlink()
        save(tmp_path / "a/images/1.png", picture(1, 12, 16))
        pictures = self.site(tmp_path, "b", [mask])
        annotations = [{"segmentation": [[0, 0, 64, 0, 64, 48]]}]
        (tmp_path / "b/annotations/a.json").write_text(json.dumps(coco_of(pictures, [annotations], ["lesion"])))
        with pytest.raises(Refused) as refused:
            draw_coco(tmp_path)
        told = str(refused.value)
        assert "a.json: 0.png: expected one image of that name in" in told
        assert "found no such image; add it, or take its entry out" in told
        assert "1.png: expected 32 x 24, as annotated, found 16 x 12 pixels; annotate the image that lies here" in told
        assert (
            "annotation 1 of 0.png: expected an outline inside of the picture, 32 x 24 pixels, found x from 0" in told
        )
        assert not list(tmp_path.rglob("masks"))

    def test_a_mask_of_somebody_else_stays(self, tmp_path):
        self.site(tmp_path, "a", [np.array(disc()) > 0] * 2)
        save(tmp_path / "a/masks/1.png", disc(radius=2))
        before = (tmp_path / "a/masks/1.png").read_bytes()
        with pytest.raises(Refused, match=r"1\.png: expected none, or the very one to be drawn, found another file"):
            draw_coco(tmp_path)
        assert (tmp_path / "a/masks/1.png").read_bytes() == before
        assert not (tmp_path / "a/masks/0.png").exists()

    def test_a_picture_in_two_files_and_no_file_at_all(self, tmp_path):
        save(tmp_path / "a/images/0.png", picture(0))
        with pytest.raises(Refused, match="expected COCO annotations of a site, found no file; put them into"):
            draw_coco(tmp_path)
        mask = np.array(disc()) > 0
        self.site(tmp_path, "a", [mask])
        self.site(tmp_path, "a", [mask], file="annotations/b.json")
        with pytest.raises(Refused, match=r"b\.json: expected each picture once, found 0\.png a second time"):
            draw_coco(tmp_path)


class TestNifti:
    AFFINE = np.diag([0.5, 0.5, 2.0, 1.0])

    @classmethod
    def volume(cls, path: Path, data: np.ndarray, affine: np.ndarray | None = None) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(data, cls.AFFINE if affine is None else affine), path)
        return path

    def test_volumes_become_slices_with_their_masks(self, tmp_path):
        data = np.random.default_rng(0).integers(0, 255, (8, 6, 3)).astype(np.uint8)
        self.volume(tmp_path / "in/a/images/p1.nii.gz", data)
        self.volume(tmp_path / "in/a/masks/p1_mask.nii.gz", (data > 100).astype(np.uint8))
        self.volume(tmp_path / "in/a/masks/gone.nii", np.zeros((2, 2, 2), np.uint8))
        self.volume(tmp_path / "in/b/images/sub/p1.nii", data[..., :1])
        said = cut_nifti(tmp_path / "in", tmp_path / "out")
        assert said == ["1 mask of a belongs to no image; left out, such as gone.nii"]
        files = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.png")}
        names = [f"p1/p1_000{number}.png" for number in (1, 2, 3)]
        assert files == {f"a/{kind}/{name}" for kind in ("images", "masks") for name in names} | {
            "b/images/sub_p1/sub_p1_0001.png"
        }
        for number in (1, 2, 3):
            seen = data[..., number - 1].T
            assert np.array_equal(np.array(Image.open(tmp_path / f"out/a/images/p1/p1_000{number}.png"))[..., 1], seen)
            assert np.array_equal(mask_at(tmp_path / f"out/a/masks/p1/p1_000{number}.png"), seen > 100)
        assert cut_nifti(tmp_path / "in", tmp_path / "out") == said  # once more: nothing is in the way
        (tmp_path / "in/b/images/sub/p1.nii").rename(tmp_path / "in/b/images/p2.nii")
        with pytest.raises(Refused, match=r"out/b/images/sub_p1: expected slices of volumes .* found slices of none"):
            cut_nifti(tmp_path / "in", tmp_path / "out")
        (tmp_path / "in/b/images/p2.nii").rename(tmp_path / "in/b/images/sub/p1.nii")
        (tmp_path / "out/a/masks/p1/p1_0002.png").write_bytes(b"mine")
        with pytest.raises(Refused, match=r"p1_0002\.png: expected none, or the very one to be drawn, found another"):
            cut_nifti(tmp_path / "in", tmp_path / "out")

    def test_everything_is_refused_at_once_and_nothing_written(self, tmp_path):
        zeros = np.zeros((4, 3, 2), np.uint8)
        for name in ("shape", "place", "twin/one", "twin_one"):
            self.volume(tmp_path / f"in/a/images/{name}.nii", zeros)
        self.volume(tmp_path / "in/a/masks/shape.nii", zeros[..., :1])
        self.volume(tmp_path / "in/a/masks/place.nii", zeros, np.eye(4))
        save(tmp_path / "in/b/images/photo.png", picture(0))
        with pytest.raises(Refused) as refused:
            cut_nifti(tmp_path / "in", tmp_path / "in/out")
        told = str(refused.value)
        assert "--slices: expected a folder outside of" in told
        assert "expected NIfTI volumes (.nii, .nii.gz), found no images; b/images: not read: 1 picture (photo" in told
        assert "expected one volume of that name in a site, found a second twin_one" in told
        assert "shape.nii: expected 4 x 3 x 2, as shape.nii has, found 4 x 3 x 1 voxels; export it on" in told
        assert "place.nii: expected the affine of place.nii, found corners up to 2.062 mm from the volume's" in told
        assert not (tmp_path / "in/out").exists()
        with pytest.raises(Refused, match=r"expected NIfTI volumes .*, found none; expected is DIR/<site>/images"):
            cut_nifti(tmp_path / "nowhere", tmp_path / "out")

    def test_the_names_of_nnunet_are_understood_and_several_channels_refused(self, tmp_path):
        zeros = np.zeros((4, 3, 2), np.uint8)
        for name in ("images/a_1_0000", "masks/a_1", "images/a_2_0000", "images/n_0007", "masks/n_0007"):
            self.volume(tmp_path / f"in/a/{name}.nii.gz", zeros)
        self.volume(tmp_path / "in/b/images/b_0000.nii.gz", zeros)  # no mask
        cut_nifti(tmp_path / "in", tmp_path / "out")
        folders = {path.parent.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.png")}
        assert folders == {
            *("a/images/a_1_0000", "a/masks/a_1_0000", "a/images/a_2_0000", "a/images/n_0007", "a/masks/n_0007"),
            "b/images/b_0000",
        }
        for name in ("a_1_0001", "a_2_0001"):
            self.volume(tmp_path / f"in/a/images/{name}.nii.gz", zeros)
        told = r"(?s)a_1_0001\.nii.* one channel .*, found a further channel.*a_2_0001\.nii.* a further channel"
        with pytest.raises(Refused, match=told):
            cut_nifti(tmp_path / "in", tmp_path / "other")
        assert not (tmp_path / "other").exists()

    def test_volumes_that_are_only_numbered_are_no_channels(self, tmp_path):
        for name in ("images/p_0000", "masks/p_0000", "images/p_0001", "masks/p_0001"):
            self.volume(tmp_path / f"in/a/{name}.nii.gz", np.zeros((4, 3, 1), np.uint8))
        cut_nifti(tmp_path / "in", tmp_path / "out")
        assert len(list((tmp_path / "out").rglob("*.png"))) == 4

    def test_slices_of_a_single_value_are_left_out_and_counted_unless_something_is_drawn_there(self, tmp_path):
        data, drawn = np.zeros((4, 3, 4), np.uint8), np.zeros((4, 3, 4), np.uint8)
        data[0, 0, 1] = drawn[0, 0, 2] = 1
        self.volume(tmp_path / "in/a/images/p.nii", data)
        self.volume(tmp_path / "in/a/masks/p.nii", drawn)
        assert cut_nifti(tmp_path / "in", tmp_path / "out") == ["2 slices of a single grey value left out"]
        kept = {path.relative_to(tmp_path / "out/a").as_posix() for path in (tmp_path / "out").rglob("*.png")}
        assert kept == {f"{kind}/p/p_000{number}.png" for kind in ("images", "masks") for number in (2, 3)}

    def test_unlike_voxels_are_said_and_a_site_can_be_without_spacing(self, tmp_path):
        data, wide = np.zeros((4, 3, 2), np.uint8), np.diag([0.5, 0.5, 6.0, 1.0])
        self.volume(tmp_path / "in/a/images/p1.nii", data)
        self.volume(tmp_path / "in/b/images/p2.nii", data, wide)
        [said] = cut_nifti(tmp_path / "in", tmp_path / "out")
        assert "unlike voxels (mm of rows, columns, slices): a 0.5 x 0.5 x 2, b 0.5 x 0.5 x 6;" in said
        given = {"without_spacing": ["b"]}
        assert cut_nifti(tmp_path / "in", tmp_path / "without", **given) == []
        notes = volumes_of(tmp_path / "without")
        assert [note["spacing"] for note in notes.values()] == [[0.5, 0.5, 2.0], None]
        with pytest.raises(Refused, match=r"--without-spacing: expected one of \['a', 'b'\], found 'c'; name a site"):
            cut_nifti(tmp_path / "in", tmp_path / "other", without_spacing=["c"])

    def test_axes_are_told_or_turned(self, tmp_path):
        data = np.arange(24, dtype=np.uint8).reshape(4, 3, 2)
        self.volume(tmp_path / "in/a/images/ras.nii", data)
        turned = self.volume(tmp_path / "in/a/images/sra.nii", data.transpose(2, 0, 1), self.AFFINE[:, [2, 0, 1, 3]])
        self.volume(
            tmp_path / "in/a/masks/sra.nii",
            (data == 7).transpose(2, 0, 1).astype(np.uint8),
            nibabel.load(turned).affine,
        )
        voxels, axes = cut_nifti(tmp_path / "in", tmp_path / "as_they_are")
        assert "a 0.5 x 0.5 to 2 x 0.5 to 2" in voxels
        assert "1 RAS (such as ras.nii), 1 SRA (such as sra.nii)" in axes
        assert cut_nifti(tmp_path / "in", tmp_path / "out", reorient=True) == []
        for number in (1, 2):
            seen = [np.array(Image.open(tmp_path / f"out/a/images/{n}/{n}_000{number}.png")) for n in ("ras", "sra")]
            assert np.array_equal(*seen)
            assert np.array_equal(mask_at(tmp_path / f"out/a/masks/sra/sra_000{number}.png"), seen[0][..., 0] == 7)


def test_what_a_refused_command_wrote_is_taken_back_and_nothing_else(tmp_path):
    TestNifti.volume(tmp_path / "in/a/images/one.nii", np.zeros((4, 3, 2), np.uint8))
    cut_nifti(tmp_path / "in", tmp_path / "out")
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    TestNifti.volume(tmp_path / "in/a/images/two.nii", np.ones((4, 3, 2), np.uint8))

    def refused(slices: Path) -> None:
        with taken_back_if_refused() as written:
            cut_nifti(tmp_path / "in", slices, written=written)
            raise Refused([])

    with pytest.raises(Refused):
        refused(tmp_path / "out")
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before
    assert not (tmp_path / "out/a/images/two").exists()
    with pytest.raises(Refused):
        refused(tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("voxels", "shown"),
    [
        ({"a": [(1, 1, 2)], "b": [(1, 1, 3)]}, []),  # 1.5 times as long
        ({"a": [(1, 1, 2), (1, 1, 3.1)]}, ["a 1 x 1 x 2 to 3.1"]),
        ({"a": [(1, 1, 2)], "b": [(1, 2, 2), (1, 2, 2)]}, ["a 1 x 1 x 2, b 1 x 2 x 2"]),
        ({}, []),
    ],
)
def test_unlike_voxels_are_said_of_volumes_of_one_site_too(voxels, shown):
    assert [sentence.partition(": ")[2].partition(";")[0] for sentence in unlike_voxels(voxels)] == shown
