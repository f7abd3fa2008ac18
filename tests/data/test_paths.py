from __future__ import annotations

import pytest

from samfed_monai.core.errors import Refused
from samfed_monai.data.datalist import confine, unsafe


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("../a.png", "'..' in"),
        ("a/../../b.png", "'..' in"),
        ("/etc/passwd", "the absolute path"),
        ("C:/a.png", "the absolute path"),
        ("a\\b.png", "a backslash"),
        ("", "an empty path"),
        ("a\nb.png", "a control character"),
        ("\udcff.png", "not valid Unicode"),
    ],
)
def test_fault_18_paths_that_leave_the_root_are_unsafe(path, reason):
    assert reason in (unsafe(path) or "")


@pytest.mark.parametrize("path", ["a.png", "Klinik Süd/Läsion 1.png", "画像/..a.png", "a/./b..png"])
def test_fault_20_unicode_and_spaces_are_safe(path):
    assert unsafe(path) is None


def test_fault_19_a_link_out_of_the_root_is_refused(tmp_path):
    (tmp_path / "outside.png").write_bytes(b"x")
    root = tmp_path / "root"
    root.mkdir()
    (root / "a.png").symlink_to(tmp_path / "outside.png")
    (root / "inside.png").write_bytes(b"x")
    (root / "b.png").symlink_to(root / "inside.png")
    with pytest.raises(Refused, match=r"list -> public\[0\].*'a.png' is a link out of the data root; copy the file"):
        confine(root, "a.png", where="list -> public[0]")
    assert confine(root, "b.png", where="x") == (root / "inside.png").resolve()


def test_the_root_itself_may_be_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.png").write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert confine(tmp_path / "link", "a.png", where="x").is_file()
