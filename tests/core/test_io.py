"""One way to write files, one way to read tensors, strict JSON, and SHA-256 of bytes, files and content."""

from __future__ import annotations

import csv
import io
import json
import os
import pickle
import re
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load

from samfed_monai.core import io as files
from samfed_monai.core import tensor_file
from samfed_monai.core.errors import Refused
from samfed_monai.core.model_file import network_overrides, read_header, settings_of


def test_write_replaces_file_when_block_ends(tmp_path: Path):
    path = tmp_path / "new folder" / "a file"
    files.write_text(path, "old")
    with files.atomic_write(path) as stream:
        stream.write(b"new")
        stream.flush()
        assert path.read_text() == "old"
        assert len(list(path.parent.glob(".*.tmp"))) == 1, "what is half written is hidden and named so"
    assert path.read_text() == "new"
    assert os.listdir(path.parent) == ["a file"]


def test_file_in_place_of_folder_is_reported_with_target(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    target = tmp_path / "file" / "list.json"
    for attempt in (
        lambda: files.write_text(target, "{}"),
        lambda: files.require_writable(target),
        files.atomic_folder(target).__enter__,
    ):
        with pytest.raises(OSError, match=r"exists|Not a directory") as caught:
            attempt()
        assert caught.value.filename == str(target)


def test_require_writable_creates_nothing(tmp_path: Path):
    files.require_writable(tmp_path)
    files.require_writable(tmp_path / "new" / "deep" / "list.json")
    assert os.listdir(tmp_path) == []


def test_leftovers_of_killed_writers_are_removed(tmp_path: Path):
    code = "import os; from samfed_monai.core.io import atomic_folder, atomic_write\n"
    code += "with atomic_folder('a') as at, atomic_write('b'): (at / 'c').mkdir(); open('.mine.tmp', 'w'); os._exit(9)"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False)
    files.write_text(tmp_path / "b", "")
    assert len(list(tmp_path.iterdir())) == 4, "other processes may be writing them"
    for pattern, left in (("*", 3), ("**/*", 2)):  # at first, a file in the folder is new
        for path in tmp_path.glob(pattern):
            os.utime(path, (0, 0))
        files._remove_leftovers.cache_clear()  # as in another process
        files.write_text(tmp_path / "b", "")
        assert len(list(tmp_path.iterdir())) == left
    assert sorted(os.listdir(tmp_path)) == [".mine.tmp", "b"]


def test_file_name_of_maximum_length_is_written(tmp_path: Path):
    path = tmp_path / ("ä" * 125 + ".json")
    files.write_text(path, "x")
    assert len(os.fsencode(path.name)) == 255
    assert path.read_text() == "x"


def test_folder_appears_when_block_ends_and_is_readable(tmp_path: Path):
    with files.atomic_folder(tmp_path / "deep" / "new") as folder:
        assert folder.parent == tmp_path / "deep", "on the same file system"
        (folder / "a").write_text("a")
        assert not (tmp_path / "deep" / "new").exists()
    assert [path.name for path in (tmp_path / "deep").rglob("*")] == ["new", "a"]
    assert (tmp_path / "deep" / "new").stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("error", [ValueError("half-way"), KeyboardInterrupt()])
def test_error_in_block_keeps_old_file_and_no_folder(tmp_path: Path, error: BaseException):
    def write_half() -> None:
        with files.atomic_folder(tmp_path / "new") as folder, files.atomic_write(tmp_path / "a") as stream:
            (folder / "b").write_text("b")
            stream.write(b"new")
            raise error

    files.write_text(tmp_path / "a", "old")
    with pytest.raises(type(error)):
        write_half()
    assert (tmp_path / "a").read_text() == "old"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize(("place", "named"), [(None, "new"), ("{}/b", "new"), ("source", "source")])
def test_fault_49_error_in_temporary_folder_names_target(tmp_path: Path, place: str | None, named: str):
    def fill() -> None:
        with files.atomic_folder(tmp_path / "new") as folder:
            raise OSError(28, "No space left on device", place and str(tmp_path / place.format(folder)))

    with pytest.raises(OSError, match="No space left") as caught:
        fill()
    assert caught.value.filename == str(tmp_path / named)


@pytest.mark.parametrize(
    ("step", "error"),
    [("os.fsync", OSError(28, "No space left on device")), ("tempfile.mkstemp", PermissionError(13, "no permission"))],
)
def test_faults_49_and_54_failed_write_keeps_old_file(tmp_path: Path, monkeypatch, step, error):
    files.write_text(tmp_path / "a", "old")
    monkeypatch.setattr(f"samfed_monai.core.io.{step}", Mock(side_effect=error))
    with pytest.raises(type(error), match=error.strerror) as caught:
        files.write_text(tmp_path / "a", "new")
    assert caught.value.filename == str(tmp_path / "a")
    assert (tmp_path / "a").read_text() == "old"
    assert os.listdir(tmp_path) == ["a"]


def test_fault_48_killed_writer_never_tears_file(tmp_path: Path):
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


@pytest.fixture
def flushed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The inodes of what is flushed to the disk, in order."""
    inodes: list[int] = []
    monkeypatch.setattr(files.os, "fsync", lambda descriptor: inodes.append(os.fstat(descriptor).st_ino))
    return inodes


def test_file_is_synced_before_rename_and_folder_after(
    tmp_path: Path, flushed: list[int], monkeypatch: pytest.MonkeyPatch
):
    replace = os.replace

    def noted(source: str, target: Path) -> None:
        assert flushed == [os.stat(source).st_ino]
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", noted)
    files.write_text(tmp_path / "a", "x")
    assert flushed == [(tmp_path / "a").stat().st_ino, tmp_path.stat().st_ino]


@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_appended_line_is_synced_and_file_has_mode(tmp_path: Path, flushed: list[int], mode: int):
    path = tmp_path / "new folder" / "a.jsonl"
    files.append_line(path, "läsion", mode=mode)
    with path.open("a") as stream:
        stream.write("cut o")
    path.chmod(0o666)
    files.append_line(path, "next", mode=mode)
    assert path.read_text(encoding="utf-8") == "läsion\ncut o\nnext\n"
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert flushed == [path.stat().st_ino] * 2


def test_fault_49_partial_line_write_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(files.os, "write", lambda descriptor, content: len(content) - 1)
    with pytest.raises(OSError, match=f"No space left on device: '{tmp_path}/a'"):
        files.append_line(tmp_path / "a", "line")


def test_json_round_trips_and_nan_is_not_written(tmp_path: Path):
    content = {"name": "läsion ä", "items": [1, 2.5, None, True]}
    files.write_json(tmp_path / "a.json", content)
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(tmp_path / "a.json", {"dice": float("nan")})
    assert files.read_json(tmp_path / "a.json") == content
    assert "läsion ä" in (tmp_path / "a.json").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r'{"a": "\ud83d\ude00"}', {"a": "\U0001f600"}),  # both halves of a character are one
        ('{"a": {"name": 1}, "b": {"name": 2}}', {"a": {"name": 1}, "b": {"name": 2}}),  # the same key in two objects
    ],
)
def test_unusual_valid_json_is_read(tmp_path: Path, text: str, content: dict):
    (tmp_path / "a.json").write_text(text)
    assert files.read_json(tmp_path / "a.json") == content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"a\.json: expected a readable file, found No such file"),
        (b"", "found 'an empty file'"),
        (b'{"a": "\xff"}', "expected UTF-8 JSON, found byte 7 is not UTF-8; save it as UTF-8"),
        (b"seed: 1", "line 1, column 1"),
        (b"{\n", r"a\.json, line \d, column \d+: .*found '{' \("),
        (b"[1,\n\n", r"a\.json, line \d, column \d+: .*found '\[1,' \("),
        (b'{\n  "a":\n', r"""a\.json, line \d, column \d+: .*found '"a":' \("""),
        (
            b'{"seed": 1, "seed": 2, "inner": {"tau": 1, "tau": 2}}',
            r"(?s)2 problems.*-> tau: .*twice.*-> seed: .*twice",
        ),
        (b'{"seed": ' + b"9" * 5000 + b"}", "numbers with few digits .*found Exceeds the limit"),
        (
            rb'{"sites": {"\ud800": []}}',
            r"a\.json: expected valid Unicode, .*found 'utf-8' codec can't encode character '\\ud800'",
        ),
    ],
)
def test_faults_26_and_27_invalid_json_is_refused(tmp_path: Path, content: bytes | None, message: str):
    if content is not None:
        (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(Refused, match=message):
        files.read_json(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        ('{"a": 1, // why\n}', "JSON has no comments; remove the comment, or write a key `_note` in a configuration"),
        ('{"a": 1 /* why */}', "JSON has no comments"),
        ('# why\n{"a": 1}', "JSON has no comments"),
        ('{"a": True}', "write true / false / null"),
        ('{"a": [1, None]}', "write true / false / null"),
        ("{'a': 1}", 'write double quotes (")'),
        ('{"a": \u201cx\u201d}', 'write double quotes (")'),
        ('{"a": 0,5}', "write decimals with a point, as 0.5"),
        ('{"a": 1,}', "look for a trailing comma or a missing quote at or just before this place"),
        ('{"a": Truely}', "look for a trailing comma or a missing quote at or just before this place"),
        ('{"a": 1, b": 2}', "look for a trailing comma or a missing quote at or just before this place"),
    ],
)
def test_fault_27_json_syntax_error_is_refused_with_hint(tmp_path: Path, content: str, hint: str):
    (tmp_path / "a.json").write_text(content, encoding="utf-8")
    with pytest.raises(Refused, match=rf"a\.json, line 1, column \d+: expected valid JSON, .*; {re.escape(hint)}"):
        files.read_json(tmp_path / "a.json")


def test_only_surroundings_of_error_in_long_line_are_shown(tmp_path: Path):
    (tmp_path / "a.json").write_text(f'{{"a": [{"1, " * 999}], "b": {"2" * 999}}}')
    expected = r"a/b\.json, line 1, column 3005: .* found ', (1, ){19}\], \"b\": 2+' \(Exp"
    with pytest.raises(Refused, match=expected) as caught:
        files.read_json(tmp_path / "a.json", name="a/b.json")
    assert len(str(caught.value)) < 400


def test_byte_order_mark_is_ignored_unless_disallowed(tmp_path: Path):
    (tmp_path / "a.json").write_text('{"a": 1}', encoding="utf-8-sig")
    assert files.read_json(tmp_path / "a.json") == {"a": 1}
    with pytest.raises(Refused, match=r"a\.json: expected no byte order mark .*, found one at .* without BOM"):
        files.read_json(tmp_path / "a.json", byte_order_mark=False)


ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, example B.1


def test_sha256_matches_standard_example_and_long_file(tmp_path: Path):
    content = bytes(range(256)) * 4096 * 3 + b"tail"
    (tmp_path / "abc").write_bytes(b"abc")
    (tmp_path / "long").write_bytes(content)
    assert files.sha256_bytes(b"abc") == files.sha256_file(tmp_path / "abc") == ABC
    assert files.sha256_file(tmp_path / "long") == files.sha256_bytes(content)


def test_canonical_hash_ignores_key_order_and_spaces():
    assert files.canonical_hash({"a": 1, "b": [1, 2]}) == files.canonical_hash(json.loads('{"b":[1,2],   "a":1}'))
    assert files.canonical_hash({"a": 1, "b": [1, 2]}) != files.canonical_hash({"a": 1, "b": [2, 1]})
    assert files.canonical_hash("abc") == files.sha256_bytes(b'"abc"')


def weights() -> dict[str, torch.Tensor]:
    return {"conv.weight": torch.arange(6.0).reshape(2, 3), "bn.num_batches_tracked": torch.tensor(7)}


def test_tensors_views_and_metadata_come_back_bit_for_bit(tmp_path: Path):
    path, view = tmp_path / "w.safetensors", torch.arange(6.0).reshape(2, 3).T.requires_grad_()
    files.save_tensors(path, {**weights(), "view": view}, metadata={"network_name": "basic_unet", "image_size": "64"})
    assert {name: (tensor.dtype, tensor.tolist()) for name, tensor in files.safe_load(path).items()} == {
        "conv.weight": (torch.float32, [[0, 1, 2], [3, 4, 5]]),
        "bn.num_batches_tracked": (torch.int64, 7),
        "view": (torch.float32, [[0, 3], [1, 4], [2, 5]]),
    }
    assert read_header(path) == {"network_name": "basic_unet", "image_size": "64"}
    assert settings_of(path) == {"network_name": "basic_unet", "image_size": 64}


@pytest.mark.parametrize("content", [weights(), {"model": weights()}])
def test_torch_files_are_read_as_tensors(tmp_path: Path, content: dict):
    torch.save(content, tmp_path / "w.pt")
    assert torch.equal(files.safe_load(tmp_path / "w.pt")["conv.weight"], weights()["conv.weight"])


class Bomb:
    """Touches a canary file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (str(self.canary),)


@pytest.mark.parametrize("writer", ["torch", "pickle"])
@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_fault_36_malicious_pickle_is_refused_and_not_run(tmp_path: Path, writer: str, name: str):
    canary, path = tmp_path / "canary", tmp_path / name
    hostile = {"conv.weight": Bomb(canary)}
    if writer == "torch":
        torch.save(hostile, path)
    else:
        path.write_bytes(pickle.dumps(hostile))
    with pytest.raises(Refused, match=name):
        files.safe_load(path)
    assert not canary.exists()
    pickle.loads(pickle.dumps(hostile))
    assert canary.exists(), "the bomb is live: the test above means something"


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}])
def test_file_without_state_dict_is_refused(tmp_path: Path, content: object):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(Refused, match="an object that is not a state dict"):
        files.safe_load(tmp_path / "w.pt")


def test_missing_weights_folders_and_exported_programs_are_refused(tmp_path: Path):
    for name in ("net.ts", "net.pt2"):
        (tmp_path / name).touch()
        with pytest.raises(Refused, match=rf"{name}: expected a weights file, found an exported program; give the wei"):
            files.safe_load(tmp_path / name)
    (tmp_path / "list.json").write_text("{}")
    with pytest.raises(Refused, match=r"json: expected a weights file: \.safetensors, or tensors only from torch\."):
        files.safe_load(tmp_path / "list.json")
    for name in ("none.safetensors", "none.pt"):
        with pytest.raises(Refused, match=rf"{name}: expected a weights file, found no such file; check the path"):
            files.safe_load(tmp_path / name)
        (tmp_path / name).mkdir()
        with pytest.raises(Refused, match=rf"{name}: expected a weights file, found a folder; name a file in it"):
            files.safe_load(tmp_path / name)
    with pytest.raises(Refused, match=r"none\.pt: expected a JSON file, found a folder; name a file in it"):
        files.read_json(tmp_path / "none.pt")


@pytest.mark.parametrize("keep", [0, 5, 40, -1])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_fault_52_truncated_weights_file_is_refused(tmp_path: Path, keep: int, suffix: str):
    whole = tmp_path / f"whole{suffix}"
    if suffix == ".pt":
        torch.save(weights(), whole)
    else:
        files.save_tensors(whole, weights())
    torn = tmp_path / f"torn{suffix}"
    torn.write_bytes(whole.read_bytes()[:keep])
    with pytest.raises(Refused, match="torn"):
        files.safe_load(torn)


@pytest.mark.parametrize("value", [float("nan"), -float("inf")])
def test_fault_32_non_finite_weights_are_refused(tmp_path: Path, value: float):
    tensors = {"conv.weight": torch.full((3, 2), value), "extra": torch.zeros(1)}
    files.save_tensors(tmp_path / "w.safetensors", tensors)
    with pytest.raises(Refused, match=r"1 problem\n  - w\.safetensors -> conv\.weight: .* found NaN or infinity"):
        files.safe_load(tmp_path / "w.safetensors")
    problems = files.check_tensors(tensors, like=weights(), where="w.safetensors")
    assert [str(problem).partition(": ")[0] for problem in problems] == [
        "w.safetensors -> bn.num_batches_tracked",
        "w.safetensors -> extra",
        "w.safetensors -> conv.weight",
        "w.safetensors -> conv.weight",
    ]
    assert str(problems[-1]).endswith(": expected finite values, found NaN or infinity")


@pytest.mark.parametrize(
    ("values", "finite"),
    [
        ([1.0, float("nan")], False),
        ([1.0, float("inf")], False),
        ([float("inf"), float("-inf")], False),
        ([65504.0, 65504.0], True),
        ([], True),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_all_finite_tolerates_overflowing_sum(values, finite, dtype):
    assert files.all_finite(torch.tensor(values, dtype=dtype)) is finite
    assert files.all_finite(torch.tensor([1, 2]))


@pytest.mark.parametrize(
    ("tensor", "expected", "found"),
    [
        *((torch.zeros(shape), "shape (2, 3)", f"shape {shape}") for shape in ((3, 2), (6,), (1, 2, 3), (2, 1))),
        *((torch.zeros(2, 3, dtype=dtype), "torch.float32", str(dtype)) for dtype in (torch.float16, torch.int32)),
    ],
)
def test_faults_33_and_35_wrong_shape_or_dtype_is_reported(tensor, expected, found):
    (problem,) = files.check_tensors(weights() | {"conv.weight": tensor}, like=weights())
    assert str(problem) == f"tensors -> conv.weight: expected {expected}, found {found}"


def test_fault_34_missing_and_extra_names_are_listed():
    sent = {"conv.weight": torch.zeros(2, 3), "conv.bias": torch.zeros(2), "head": torch.zeros(1)}
    assert [str(problem) for problem in files.check_tensors(sent, like=weights(), where="site-1")] == [
        "site-1 -> bn.num_batches_tracked: expected shape (), found no such tensor",
        "site-1 -> conv.bias: expected a tensor of this network, found an unknown tensor",
        "site-1 -> head: expected a tensor of this network, found an unknown tensor",
    ]


@pytest.mark.parametrize(("depth", "taken"), [(100, True), (101, False), (100_000, False)])
@pytest.mark.parametrize(("opened", "closed"), [("[", "]"), ('{"a":', "}")])
def test_fault_71_json_nesting_is_limited_to_100_levels(tmp_path, depth, taken, opened, closed):
    text = opened * depth + ("" if opened == "[" else "1") + closed * depth
    (tmp_path / "deep.json").write_text(text)
    if taken:
        assert json.dumps(files.parse_json(text), separators=(",", ":")) == text
    else:
        with pytest.raises(ValueError, match="more than 100 levels"):
            files.parse_json(text)
        with pytest.raises(Refused, match=r"deep\.json: expected .*little nesting, found more than 100"):
            files.read_json(tmp_path / "deep.json")


def test_invalid_safetensors_header_gives_no_settings(tmp_path):
    deep = {"classes": "[" * 100_000, "network_def": "[" * 100_000, "image_size": "9" * 5000}
    for name, text in (
        ("a", '{"__metadata__":' * 100_000),
        ("b", json.dumps({"__metadata__": deep})),
        ("c", '{"__metadata__": []}'),
    ):
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(len(text).to_bytes(8, "little") + text.encode())
        assert (settings_of(path), network_overrides(path)) == ({}, {})
    path.write_bytes(b"\xff" * 64)
    assert read_header(path) == read_header(tmp_path / "none.safetensors") == {}


@pytest.mark.parametrize(("mode", "folder"), [(files.PRIVATE, 0o700), (files.PUBLIC, 0o755)])
def test_page_and_folders_have_mode_and_escaped_characters(tmp_path, mode, folder):
    files.write_page(tmp_path / "a" / "b" / "c.html", "<p>a\x1b[31m\u202eb\udcff</p>\n", mode=mode)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a", "a/b", "a/b/c.html")]
    assert modes == [folder, folder, mode]
    assert (tmp_path / "a" / "b" / "c.html").read_text() == "<p>a\\x1b[31m\\u202eb\\xff</p>\n"


def test_umask_restricts_file_modes(tmp_path):
    code = "from samfed_monai.core.io import PUBLIC, write_text; write_text('a/b', 'x', mode=PUBLIC)"
    subprocess.run([sys.executable, "-c", f"import os; os.umask(0o027); {code}"], cwd=tmp_path, check=True)
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a", "a/b")] == [0o750, 0o640]


def test_lock_is_held_until_block_ends(tmp_path, monkeypatch):
    waited = []

    def enter():
        with files.locked(tmp_path / "new" / "ledger", waiting=lambda: waited.append("waiting")):
            waited.append("entered")

    with files.locked(tmp_path / "new" / "ledger"):
        other = threading.Thread(target=enter)
        other.start()
        while not waited:
            time.sleep(0.01)
        waited.append("still held")
    other.join()
    assert waited == ["waiting", "still held", "entered"]
    monkeypatch.setattr("fcntl.flock", Mock(side_effect=OSError(37, "No locks available")))
    with pytest.raises(OSError, match=f"No locks available: '{tmp_path}/ledger'"), files.locked(tmp_path / "ledger"):
        pass


def test_fault_50_memory_error_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "model.pt").write_bytes(b"x")
    for error in (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")):

        def load(*_: object, error: Exception = error, **__: object) -> None:
            raise error

        monkeypatch.setattr(torch, "load", load)
        with pytest.raises(type(error)) as caught:
            files.safe_load(tmp_path / "model.pt")
        assert caught.value is error


def test_csv_rows_are_written_from_dicts_and_lists():
    rows = [{"b": 2, "a": "Läsion 7, links", "c": "left out"}, ["'quoted'", None], {"a": "a=b"}]
    assert files.to_csv(["a", "b"], rows) == "a,b\n\"Läsion 7, links\",2\n'quoted',\na=b,\n"


@pytest.mark.parametrize("name", ["=1+1", "+A1", "-A1", "@SUM(A1)", "\tx", '=HYPERLINK("http://a","b")', "'=1"])
def test_fault_70_spreadsheet_formula_is_escaped_in_csv(name):
    text = files.to_csv(["id", "dice"], [{"id": name, "dice": -0.5}])
    assert list(csv.reader(io.StringIO(text, newline="")))[1] == ["'" + name, "-0.5"], "a number keeps its sign"
    assert files.from_csv(io.StringIO(text, newline=""))[0]["id"] == name


CELLS = st.text("aä1=+-@\t\r\n'\",; ")


@given(st.lists(st.tuples(CELLS, CELLS), max_size=5))
def test_csv_round_trips(rows):
    assert files.from_csv(io.StringIO(files.to_csv(["a", "b"], rows), newline="")) == [
        {"a": a, "b": b} for a, b in rows
    ]


TENSORS = {"b": torch.tensor([1, 2]), "a": torch.tensor([[0.5], [1.5]])}


def test_tensor_file_is_safetensors_with_sha256_digest(tmp_path):
    path = tmp_path / "a.safetensors"
    with path.open("wb") as stream:
        digest = tensor_file.write(stream, TENSORS)
    assert digest == files.sha256_bytes(path.read_bytes()) == tensor_file.digest_like(path, digest)
    back = load(path.read_bytes())
    assert all(torch.equal(back[name], tensor) for name, tensor in TENSORS.items())


def test_state_checksum_changes_with_one_bit(tmp_path):
    path = tmp_path / "state.safetensors"
    with path.open("wb") as stream:
        digest = tensor_file.write_state(stream, TENSORS)
    assert digest.startswith("xxh3:")
    assert len(digest) == len("xxh3:") + 32
    assert tensor_file.digest_like(path, digest) == digest
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert tensor_file.digest_like(path, digest) != digest
