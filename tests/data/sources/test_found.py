"""What a source hands over: archives unpacked with care, and what was left lying."""

from __future__ import annotations

import stat
import zipfile

import pytest

from samfed_monai.core.errors import Refused
from samfed_monai.data.sources.found import passed_over, unpack
from tests.data.making import disc, picture, save, site


def test_an_archive_is_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("Data/ISIC_0000001.jpg", b"x")
    assert unpack(tmp_path / "a.zip", tmp_path / "out") == [tmp_path / "out" / "Data" / "ISIC_0000001.jpg"]
    assert (tmp_path / "out" / "Data" / "ISIC_0000001.jpg").read_bytes() == b"x"


@pytest.mark.parametrize("name", ["../evil.txt", "/tmp/evil.txt", "a/../../evil.txt"])
def test_fault_30_an_archive_that_leaves_its_folder_is_refused_whole(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("good.txt", b"x")
        archive.writestr(name, b"x")
    with pytest.raises(Refused, match="members inside the archive's own folder"):
        unpack(tmp_path / "a.zip", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "evil.txt").exists()


def test_fault_30_a_link_in_an_archive_is_refused(tmp_path):
    link = zipfile.ZipInfo("link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(link, "/etc")
    with pytest.raises(Refused, match="the link 'link'"):
        unpack(tmp_path / "a.zip", tmp_path / "out")


def test_something_else_is_refused(tmp_path):
    (tmp_path / "a.zip").write_text("no")
    with pytest.raises(Refused, match="expected a zip archive, found File is not a zip file; download it again"):
        unpack(tmp_path / "a.zip", tmp_path / "out")


def flagged(content: bytes, *, local: int, central: int, value: int) -> bytes:
    """A zip file of one member with another value in its local header and in the directory at the end."""
    changed = bytearray(content)
    changed[local] = changed[content.index(b"PK\x01\x02") + central] = value
    return bytes(changed)


DAMAGE = {
    "Error -3 while decompressing": lambda content: content[:36] + b"\xff" * 20 + content[56:],
    "is encrypted": lambda content: flagged(content, local=6, central=8, value=1),
    "not supported": lambda content: flagged(content, local=8, central=10, value=99),
}


@pytest.mark.parametrize("message", list(DAMAGE))
def test_an_archive_that_cannot_be_unpacked_is_refused(tmp_path, message):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("member", bytes(range(256)) * 8)
    path.write_bytes(DAMAGE[message](path.read_bytes()))
    with pytest.raises(Refused, match=f"expected a zip archive, found .*{message}.*; download it again, or unpack it"):
        unpack(path, tmp_path / "out")


def test_a_member_that_ends_too_early_is_refused(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("member", b"x" * 100)
    path.write_bytes(path.read_bytes().replace((100).to_bytes(4, "little"), (10_000).to_bytes(4, "little")))
    with pytest.raises(Refused, match="found a member that ends too early; download it again"):
        unpack(path, tmp_path / "out")


def test_every_folder_with_images_somewhere_below_is_named_with_one_of_them(tmp_path):
    site(tmp_path, "a", 1, 1)
    save(tmp_path / "hospital_c" / "img" / "deep" / "1.jpg", picture(1))
    save(tmp_path / "hospital_d" / "Images" / "1.png", picture(2))
    save(tmp_path / "hospital_e" / "2.png", picture(3))
    save(tmp_path / "hospital_e" / "1.png", picture(4))
    ending = "but no folder 'images', and was not read: if it is a site, rename"
    assert passed_over(tmp_path, ["a"]) == [
        f"hospital_c holds images, such as hospital_c/img/deep/1.jpg, {ending} hospital_c/img to hospital_c/images",
        f"hospital_d holds images, such as hospital_d/Images/1.png, {ending} hospital_d/Images to hospital_d/images",
        f"hospital_e holds images, such as hospital_e/1.png, {ending.replace('rename', 'move them to')} "
        "hospital_e/images",
    ]


def test_masks_hidden_folders_the_output_and_runs_are_no_hospitals(tmp_path):
    site(tmp_path, "a", 1, 1)
    save(tmp_path / "masks" / "1.png", disc())
    save(tmp_path / ".cache" / "1.png", picture(1))
    save(tmp_path / "b" / "__MACOSX" / "1.png", picture(1))
    save(tmp_path / "b" / "._1.png", picture(1))
    save(tmp_path / "lists" / "figures" / "1.png", picture(1))
    save(tmp_path / "runs" / "first" / "overlays" / "1.png", picture(1))
    (tmp_path / "runs" / "first" / "run.json").write_text("{}")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "1.txt").write_text("")
    assert passed_over(tmp_path, ["a"], output=tmp_path / "lists" / "new" / "list.json") == []
    assert len(passed_over(tmp_path, ["a"])) == 1
