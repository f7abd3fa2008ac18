"""Zip files of a source: unpacked with care, or refused whole."""

from __future__ import annotations

import errno
import io
import stat
import zipfile
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from samfed_monai.core.errors import Refused
from samfed_monai.data.archives import unpack_all


def zipped(path: Path, *members: tuple[str | zipfile.ZipInfo, bytes], packed: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", packed) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def special(kind: int) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo("x")
    member.external_attr = (kind | 0o777) << 16
    return member


OUTSIDE = ["../evil.txt", "/tmp/evil.txt", "a/../../evil.txt", "..\\evil.txt", "a\\..\\..\\evil.txt", "C:\\evil.txt"]
OUTSIDE += ["\\\\host\\share\\evil.txt", "C:evil.txt", "\\evil.txt"]
EACH = "expected plain members inside the archive's own folder, each with a path of its own, found"


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("members", "message"),
    [
        *((["good.txt", name], EACH) for name in OUTSIDE),
        *(([special(kind)], f"{EACH} a link or a device, 'x'") for kind in (stat.S_IFLNK, stat.S_IFIFO)),
        (["a/1", "a\\1"], rf"a\\1: {EACH} the path of 'a/1'"),
        *((["a/1", name], f"{name}: {EACH} the path of 'a/1'") for name in ("a/1", "./a/1", "a//1", "a/./1")),
        *((["a/ü", name], "path of 'a/ü' to a disk that ignores upper and lower") for name in ("A/Ü", "a/u\u0308")),
        *((["a", name], f"{name}: expected a folder above it, found the file 'a' above it") for name in ("a/1", "a/")),
    ],
)
def test_fault_30_archive_with_suspicious_member_is_refused(tmp_path, members, message):
    zipped(tmp_path / "a.zip", *((name, b"x") for name in members))
    with pytest.raises(Refused, match=message):
        unpack_all(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


@pytest.mark.parametrize("place", ["Data/ISIC_0000001.jpg", "Data/1.jpg", "Süd/ß.jpg", "Süd/日本.jpg"])
@pytest.mark.parametrize("slash", ["/", "\\"])
@pytest.mark.parametrize("marked", [True, False])
def test_backslashes_and_unmarked_utf8_names_are_read(tmp_path, place, slash, marked):
    path = zipped(tmp_path / "a.zip", ("a/", b""), (place.replace("/", slash), b"x"))
    if not marked:  # bit 11 of the flags, in the local header and in the directory
        content = bytearray(path.read_bytes())
        local, directory = content.rindex(b"PK\x03\x04"), content.rindex(b"PK\x01\x02")
        content[local + 7] = content[directory + 9] = 0
        path.write_bytes(content)
    unpack_all(tmp_path)
    assert (tmp_path / place).read_bytes() == b"x"
    modes = [stat.S_IMODE((tmp_path / each).stat().st_mode) for each in ("a", place)]
    assert modes == [0o700, 0o600], "others cannot read them"


def test_cp437_member_name_is_decoded(tmp_path):
    path = zipped(tmp_path / "a.zip", ("M__ller.png", b""))
    path.write_bytes(path.read_bytes().replace(b"M__ller", "Müäller".encode("cp437")))
    unpack_all(tmp_path, folder_each=True)
    assert (tmp_path / "a" / "Müäller.png").exists()


@pytest.mark.parametrize(
    ("limit", "value", "message"),
    [
        ("samfed_monai.data.archives.MAX_BYTES", 100_000, "expected at most 0 GiB, found"),
        ("samfed_monai.data.archives.GIB", 100_000, "expected at most 200 times its size, found"),
        ("shutil.disk_usage", lambda place: SimpleNamespace(free=1000), r"expected at most the free 0\.0 GiB, found 0"),
    ],
)
def test_fault_30_archive_exceeding_disk_limits_is_refused(tmp_path, monkeypatch, limit, value, message):
    zipped(tmp_path / "a.zip", ("zeros", bytes(1_000_000)), packed=zipfile.ZIP_DEFLATED)
    monkeypatch.setattr(limit, value)
    with pytest.raises(Refused, match=message):
        unpack_all(tmp_path)


def test_full_disk_raises_os_error(tmp_path, monkeypatch):
    zipped(tmp_path / "a.zip", ("1.png", b"x"))
    monkeypatch.setattr("zipfile.ZipFile.extract", Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(OSError, match="No space left on device"):
        unpack_all(tmp_path)


def test_archives_are_checked_before_unpacking(tmp_path, caplog):
    inner = io.BytesIO()
    zipped(inner, ("1.png", b"x"))
    zipped(tmp_path / "a.ZIP", ("in.zip", inner.getvalue()))
    zipped(tmp_path / "b.zip", ("../evil", b""))
    (tmp_path / "c.rar").write_bytes(b"Rar!")
    (tmp_path / "._a.zip").write_bytes(b"of macOS")
    with pytest.raises(Refused, match="1 problem\n"):
        unpack_all(tmp_path)
    assert not (tmp_path / "in.zip").exists()
    (tmp_path / "b.zip").unlink()
    unpack_all(tmp_path, folder_each=True)
    assert (tmp_path / "a" / "in.zip").exists()
    assert "not zip files, unpack them yourself: c.rar" in caplog.text
    assert "a.ZIP: 1 archive in it left packed, such as in.zip: unpack it there" in caplog.text
    corrected = b"corrected".ljust(len(inner.getvalue()))
    (tmp_path / "a" / "in.zip").write_bytes(corrected)
    unpack_all(tmp_path, folder_each=True)
    assert (tmp_path / "a" / "in.zip").read_bytes() == corrected
    assert f"a.ZIP: 1 file differs from the archive's and was kept, such as {tmp_path}/a/in.zip: delete" in caplog.text


@pytest.mark.parametrize(
    ("packed", "local", "directory", "changed", "message"),
    [
        (zipfile.ZIP_DEFLATED, 36, -100, b"\xff" * 20, "found Error -3 while decompressing.*; download it"),
        (zipfile.ZIP_DEFLATED, 8, 10, b"\x63", "found .*not supported.*; download it again"),
        (zipfile.ZIP_DEFLATED, 6, 8, b"\1", "found an encrypted member; if you trust it, unpack it with"),
        (zipfile.ZIP_STORED, 18, 20, b"\x10\x27\0\0" * 2, "found a member that ends too early|found Overlapped en"),
        (zipfile.ZIP_STORED, 0, 103, b"no", "a zip archive, found File is not a zip file; download it again"),
    ],
    ids=["damaged", "compression", "encrypted", "short", "no archive"],
)
def test_unreadable_archive_is_refused_without_partial_output(tmp_path, packed, local, directory, changed, message):
    path = zipped(tmp_path / "a.zip", ("member", bytes(range(256)) * 8), ("there", b"x"), packed=packed)
    (tmp_path / "there").write_bytes(b"x")
    content = bytearray(path.read_bytes())
    for place in (local, content.index(b"PK\x01\x02") + directory):  # of the member's header, and of the directory's
        content[place : place + len(changed)] = changed
    path.write_bytes(content)
    with pytest.raises(Refused, match=message):
        unpack_all(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip", "there"], "half of it would be taken for all"
