"""One way to write files."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from samfed_monai.core import io as files
from samfed_monai.core.io import append_line, atomic_write, write_bytes, write_text


def test_atomic_write_replaces_the_file_and_leaves_nothing_beside_it(tmp_path: Path):
    path = tmp_path / "new folder" / "a file"
    for content in (b"old", b"new"):
        with atomic_write(path) as stream:
            stream.write(content)
    assert path.read_bytes() == b"new"
    assert os.listdir(path.parent) == ["a file"]


def test_a_name_as_long_as_the_file_system_allows_is_written(tmp_path: Path):
    path = tmp_path / ("ä" * 125 + ".json")
    write_text(path, "x")
    assert len(os.fsencode(path.name)) == 255
    assert path.read_text() == "x"


def test_the_old_content_is_read_until_the_block_ends(tmp_path: Path):
    path = tmp_path / "a"
    write_text(path, "old")
    with atomic_write(path) as stream:
        stream.write(b"new")
        stream.flush()
        assert path.read_text() == "old"
    assert path.read_text() == "new"


@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_atomic_write_gives_the_file_the_mode_asked_for(tmp_path: Path, mode: int):
    write_bytes(tmp_path / "a", b"x", mode=mode)
    assert (tmp_path / "a").read_bytes() == b"x"
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == mode


@pytest.mark.parametrize("error", [ValueError("half-way"), KeyboardInterrupt()])
def test_an_error_inside_the_block_keeps_the_old_file(tmp_path: Path, error: BaseException):
    path = tmp_path / "a"
    write_text(path, "old")

    def write_half() -> None:
        with atomic_write(path) as stream:
            stream.write(b"new")
            raise error

    with pytest.raises(type(error)):
        write_half()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a"]


def test_fault_49_a_full_disk_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "a"
    write_text(path, "old")

    def no_space(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", no_space)
    with pytest.raises(OSError, match="No space left on device"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a"]


def test_fault_49_a_file_size_limit_hit_while_writing_keeps_the_old_file(tmp_path: Path):
    """The kernel refuses the write itself, as it does on a full disk."""
    path = tmp_path / "a"
    write_text(path, "old")
    code = (
        "import resource, signal, sys\n"
        "from samfed_monai.core.io import atomic_write\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "with atomic_write(sys.argv[1]) as stream:\n"
        "    stream.write(bytes(1 << 20))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    assert done.returncode != 0
    assert "File too large" in done.stderr
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a"]


def test_fault_48_a_kill_in_the_middle_of_back_to_back_writes_never_tears_the_file(tmp_path: Path):
    """Every state a reader can meet is one whole write: all bytes the same, all of them there."""
    path, size = tmp_path / "a", 4 << 20
    code = (
        "import itertools, sys\n"
        "from samfed_monai.core.io import atomic_write\n"
        "for count in itertools.count():\n"
        "    with atomic_write(sys.argv[1]) as stream:\n"
        f"        stream.write(bytes([count % 256]) * {size})\n"
    )
    for pause in (0.0, 0.013, 0.031):
        writer = subprocess.Popen([sys.executable, "-c", code, str(path)])
        deadline = time.monotonic() + 30
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(pause)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        content = path.read_bytes()
        assert len(content) == size
        assert len(set(content)) == 1


def test_fault_54_a_read_only_folder_raises_and_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def read_only(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files.tempfile, "mkstemp", read_only)
    with pytest.raises(PermissionError):
        write_text(tmp_path / "a", "new")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_lines_are_appended_and_the_file_gets_the_mode_asked_for(tmp_path: Path, mode: int):
    path = tmp_path / "new folder" / "a.jsonl"
    for line in ("one", "läsion"):
        append_line(path, line, mode=mode)
    assert path.read_bytes() == "one\nläsion\n".encode()
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_a_file_that_others_could_read_becomes_its_owners_own(tmp_path: Path):
    (tmp_path / "a").write_text("old\n")
    (tmp_path / "a").chmod(0o644)
    append_line(tmp_path / "a", "new")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o600


def test_a_line_that_was_cut_off_keeps_a_line_of_its_own(tmp_path: Path):
    (tmp_path / "a").write_text("whole\nhal")
    append_line(tmp_path / "a", "next")
    assert (tmp_path / "a").read_text() == "whole\nhal\nnext\n"


def test_fault_49_a_line_that_was_not_written_whole_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(files.os, "write", lambda descriptor, content: len(content) - 1)
    with pytest.raises(OSError, match="No space left on device"):
        append_line(tmp_path / "a", "line")
