"""Which folders of a run are rounds."""

from __future__ import annotations

from samfed_monai.core.run_log import round_folders


def test_rounds_come_by_number_and_nothing_else_is_one(tmp_path):
    for name in ("1000", "999", "000", "1001.torn", ".1002.77.tmp", "notes"):
        (tmp_path / name).mkdir()
    (tmp_path / "003").touch()
    assert round_folders(tmp_path) == {number: tmp_path / f"{number:03d}" for number in (0, 999, 1000)}
    assert list(round_folders(tmp_path)) == [0, 999, 1000]


def test_a_run_without_rounds_has_none(tmp_path):
    assert round_folders(tmp_path / "rounds") == {}
