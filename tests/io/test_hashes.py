"""SHA-256 of bytes, files and JSON content."""

from __future__ import annotations

import json
from pathlib import Path

from samfed_monai.core.io import canonical_hash, sha256_bytes, sha256_file

ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, example B.1


def test_sha256_of_the_standard_example(tmp_path: Path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_bytes(b"abc") == ABC
    assert sha256_file(tmp_path / "abc") == ABC


def test_sha256_of_a_file_longer_than_one_piece(tmp_path: Path):
    content = bytes(range(256)) * 4096 * 3 + b"tail"
    (tmp_path / "long").write_bytes(content)
    assert sha256_file(tmp_path / "long") == sha256_bytes(content)


def test_a_canonical_hash_sees_content_and_not_order_or_spaces():
    assert canonical_hash({"a": 1, "b": [1, 2]}) == canonical_hash(json.loads('{"b":[1,2],   "a":1}'))
    assert canonical_hash({"a": 1, "b": [1, 2]}) != canonical_hash({"a": 1, "b": [2, 1]})
    assert canonical_hash("abc") == sha256_bytes(b'"abc"')
