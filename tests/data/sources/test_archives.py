from __future__ import annotations

import stat
import zipfile

import pytest

from samfed_monai.data.sources.archives import unpack
from samfed_monai.errors import Refused


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
