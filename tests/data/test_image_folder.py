"""Which files of a folder count: by name and content, without those of systems, and a count of all others."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from samfed_monai.data.image_folder import DICOM, NIFTI, PICTURE, is_ignored, kind_of, not_read, volumes_in, walk

OBJECT = bytes(128) + b"DICM"


def files(folder: Path, *names: str, content: bytes = b"") -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        *((name, b"", PICTURE) for name in ("a.JPG", "a.jfif", "IMG_1.HEIC")),
        *(("a.NII.GZ", b"", NIFTI), ("a.dcm", b"", DICOM), ("a.gif", b"GIF89a", "GIF"), ("film.MP4", b"", "video")),
        *((name, OBJECT, DICOM) for name in ("IM0001", "1.2.840.113619.2.55", "scan.ima", "DICOMDIR")),
        *((name, b"other", "of an unknown kind") for name in ("1.2.840.113619.2.55", "README")),
        *((name, b"\xff\xd8\xff\xe0", "JPEG without its suffix") for name in ("photo", "photo.jpg~")),
        *((name, b"", "text") for name in ("notes.txt", "list.csv")),
        ("x.tar.gz", b"", "GZ"),
    ],
)
def test_kind_is_detected_by_name_and_dicom_preamble(tmp_path: Path, name: str, content: bytes, kind: str) -> None:
    files(tmp_path, name, content=content)
    assert kind_of(tmp_path / name) == kind
    assert {key: [path.name for path in paths] for key, paths in walk(tmp_path).items()} == {kind: [name]}


SYSTEM = (
    *("__MACOSX/._a.png", "__MACOSX/a.png", "._a.png", ".DS_Store", ".AppleDouble/a.png", ".Trashes/501/a.png"),
    *(".Spotlight-V100/a.png", "$RECYCLE.BIN/a.png", "System Volume Information/a.png", "Thumbs.db", "desktop.ini"),
    *("@eaDir/a.png/SYNOPHOTO_THUMB_XL.jpg", "#recycle/a.png", "#snapshot/a.png", "@Recycle/a.png", ".@__thumb/a.png"),
    *(".snapshot/daily/a.png", "lost+found/a.png", "~snapshot/a.png", ".Trash-1000/files/a.png", "sub/THUMBS.DB"),
)


def test_system_files_are_ignored_and_hidden_files_and_pipes_counted(tmp_path: Path) -> None:
    files(tmp_path, *SYSTEM)
    assert walk(tmp_path) == {}
    assert all(any(map(is_ignored, Path(name).parts)) for name in SYSTEM)
    files(tmp_path, "b.png", "a/c.png", ".old.png", ".git/x.png", ".git/y.png")
    files(tmp_path.parent / "elsewhere", "d.png")
    os.symlink(tmp_path.parent / "elsewhere", tmp_path / "more")
    os.symlink("/dev/zero", tmp_path / "z.png")
    os.mkfifo(tmp_path / "p.nii.gz")
    found = walk(tmp_path)
    assert found[PICTURE] == [tmp_path / "a/c.png", tmp_path / "b.png"]
    others = "2 hidden (.git, …), 1 linked folder (more), 2 pipe or device (p.nii.gz, …)"
    assert not_read(found, (PICTURE,)) == f"not read: {others}"
    assert not_read({PICTURE: found[PICTURE]}, (PICTURE,)) == not_read({}) == ""


def test_unlistable_folder_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "locked").mkdir()
    listed = os.scandir

    def scandir(path: str) -> object:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr("os.scandir", scandir)
    with pytest.raises(PermissionError, match="locked"):
        walk(tmp_path)


def test_volumes_are_named_by_path_and_objects_without_image_skipped(tmp_path: Path) -> None:
    pytest.importorskip("pydicom", reason="pydicom is not installed: pip install samfed-monai[dicom]")
    from pydicom.data import get_testdata_file

    files(tmp_path, "b.x.NII.GZ", "sub/a.dicom", "sub/c.Nii", "photo.jpg", ".hidden/c.nii", "notes.txt")
    files(tmp_path, "IM0001", content=Path(str(get_testdata_file("CT_small.dcm"))).read_bytes())
    files(tmp_path, "1.2.3", content=Path(str(get_testdata_file("liver_1frame.dcm"))).read_bytes())
    found, others = volumes_in([tmp_path, tmp_path / "sub" / "a.dicom", tmp_path / "1.2.3"])
    there = [("IM0001", "IM0001"), ("b.x", "b.x.NII.GZ"), ("sub/a", "sub/a.dicom"), ("sub/c", "sub/c.Nii")]
    named = [("a", "sub/a.dicom"), ("1.2.3", "1.2.3")]  # the second is refused where it is read
    assert found == [(name, tmp_path / path) for name, path in there + named]
    expected = "1 DICOM without an image: Segmentation Storage (1.2.3), 1 hidden (.hidden), 1 text (notes.txt)"
    assert not_read(others) == f"not read: {expected}"
