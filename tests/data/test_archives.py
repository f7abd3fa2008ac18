"""Zip files of a source: unpacked with care, or refused whole."""

from __future__ import annotations

import io
import stat
import zipfile
from types import SimpleNamespace

import pytest

from samfed_monai.core.errors import Refused
from samfed_monai.data.archives import unpack, unpack_all


def test_an_archive_is_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("Data/ISIC_0000001.jpg", b"x")
    assert unpack(tmp_path / "a.zip", tmp_path / "out") == [tmp_path / "out" / "Data" / "ISIC_0000001.jpg"]
    assert (tmp_path / "out" / "Data" / "ISIC_0000001.jpg").read_bytes() == b"x"


OUTSIDE = ["../evil.txt", "/tmp/evil.txt", "a/../../evil.txt", "..\\evil.txt", "a\\..\\..\\evil.txt", "C:\\evil.txt"]
OUTSIDE += ["\\\\host\\share\\evil.txt", "C:evil.txt", "\\evil.txt"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_fault_30_an_archive_that_leaves_its_folder_is_refused_whole(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("good.txt", b"x")
        archive.writestr(name, b"x")
    with pytest.raises(Refused, match="plain members inside the archive's own folder"):
        unpack(tmp_path / "a.zip", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "evil.txt").exists()


@pytest.mark.parametrize(
    ("kind", "told"), [(stat.S_IFLNK, "a link or a device, 'x'"), (stat.S_IFIFO, "a link or a device, 'x'")]
)
def test_fault_30_a_link_or_a_device_in_an_archive_is_refused(tmp_path, kind, told):
    member = zipfile.ZipInfo("x")
    member.external_attr = (kind | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(member, "/etc")
    with pytest.raises(Refused, match=told):
        unpack(tmp_path / "a.zip", tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "place"),
    [("Data\\1.jpg", "Data/1.jpg"), ("Süd/ß.jpg", "Süd/ß.jpg"), ("Süd\\日本.jpg", "Süd/日本.jpg"), ("a/", "a")],
)
@pytest.mark.parametrize("marked", [True, False])
def test_backslashes_are_slashes_and_names_are_read_as_utf8_without_its_mark_too(tmp_path, name, place, marked):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(name, b"")
    if not marked:  # bit 11 of the flags, in the local header and in the directory
        content = bytearray((tmp_path / "a.zip").read_bytes())
        content[7] = content[content.index(b"PK\x01\x02") + 9] = 0
        (tmp_path / "a.zip").write_bytes(content)
    unpack(tmp_path / "a.zip", tmp_path / "out")
    assert (tmp_path / "out" / place).exists()


def test_a_name_in_the_code_page_of_dos_is_read_as_such(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("M__ller.png", b"")
    content = (tmp_path / "a.zip").read_bytes().replace(b"M__ller", "Müäller".encode("cp437"))
    (tmp_path / "a.zip").write_bytes(content)
    assert unpack(tmp_path / "a.zip", tmp_path / "out") == [tmp_path / "out" / "Müäller.png"]


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["a/1", "a\\1"], r"a\\1: expected .* each in a place of its own, found the place of 'a/1'"),
        (["a/1", "a/1"], "a/1: expected .* each in a place of its own, found the place of 'a/1'"),
        (["a", "a/1"], "a/1: expected a folder above it, found the file 'a' above it"),
    ],
)
def test_two_members_for_one_place_are_refused(tmp_path, names, told):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for number, name in enumerate(names):
            archive.writestr(name, str(number))
    with pytest.raises(Refused, match=told):
        unpack(tmp_path / "a.zip", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("limit", "told"),
    [("MAX_BYTES", "expected at most 0 GiB, found"), ("GIB", "expected at most 200 times its size, found")],
)
def test_fault_30_an_archive_that_would_fill_the_disk_is_refused(tmp_path, monkeypatch, limit, told):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(1_000_000))
    monkeypatch.setattr(f"samfed_monai.data.archives.{limit}", 100_000)
    with pytest.raises(Refused, match=told):
        unpack(tmp_path / "a.zip", tmp_path / "out")
    monkeypatch.undo()
    monkeypatch.setattr("shutil.disk_usage", lambda place: SimpleNamespace(free=1000))
    with pytest.raises(Refused, match=r"expected at most the free 0\.0 GiB, found 0\.0 GiB unpacked; make room"):
        unpack(tmp_path / "a.zip", tmp_path / "out")


def test_all_archives_are_looked_at_before_one_is_unpacked_and_others_are_named(tmp_path, caplog):
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("1.png", b"x")
    for name, content in (("a.ZIP", {"in.zip": inner.getvalue()}), ("b.zip", {"../evil": b""})):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for member, data in content.items():
                archive.writestr(member, data)
    (tmp_path / "c.rar").write_bytes(b"Rar!")
    (tmp_path / "._a.zip").write_bytes(b"of macOS")
    with pytest.raises(Refused, match="1 problem\n"):
        unpack_all(tmp_path)
    assert not (tmp_path / "in.zip").exists()
    (tmp_path / "b.zip").unlink()
    unpack_all(tmp_path, apart=True)
    assert (tmp_path / "a" / "in.zip").exists()
    assert "unpack these yourself, which are no zip files: c.rar" in caplog.text
    assert "a.ZIP: 1 archive in it left packed, such as in.zip: unpack it there" in caplog.text


def flagged(content: bytes, *, local: int, central: int, value: int) -> bytes:
    """A zip file of one member with another value in its local header and in the directory at the end."""
    changed = bytearray(content)
    changed[local] = changed[content.index(b"PK\x01\x02") + central] = value
    return bytes(changed)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda content: b"no", "a zip archive, found File is not a zip file; download it again"),
        (
            lambda content: content[:36] + b"\xff" * 20 + content[56:],
            "found Error -3 while decompressing.*; download it",
        ),
        (lambda content: flagged(content, local=8, central=10, value=99), "found .*not supported.*; download it again"),
        (
            lambda content: flagged(content, local=6, central=8, value=1),
            "found an encrypted member; if you trust it, unpack it with",
        ),
        (lambda content: content.replace(LENGTH, (10_000).to_bytes(4, "little")), "found a member that ends too early"),
    ],
    ids=["no archive", "damaged", "compression", "encrypted", "short"],
)
def test_an_archive_that_cannot_be_unpacked_is_refused(tmp_path, damage, told):
    path = tmp_path / "a.zip"
    packed = zipfile.ZIP_STORED if "early" in told else zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(path, "w", packed) as archive:
        archive.writestr("member", bytes(range(256)) * 8)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(Refused, match=told):
        unpack(path, tmp_path / "out")


LENGTH = (256 * 8).to_bytes(4, "little")
