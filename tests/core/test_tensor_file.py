"""Tensors on their way into a file."""

from __future__ import annotations

import torch
from safetensors.torch import load

from samfed_monai.core import tensor_file
from samfed_monai.core.io import sha256_bytes

TENSORS = {"b": torch.tensor([1, 2]), "a": torch.tensor([[0.5], [1.5]])}


def test_what_is_written_is_safetensors_and_its_digest_is_sha256(tmp_path):
    path = tmp_path / "a.safetensors"
    with path.open("wb") as stream:
        digest = tensor_file.write(stream, TENSORS)
    assert digest == sha256_bytes(path.read_bytes()) == tensor_file.digest_like(path, digest)
    back = load(path.read_bytes())
    assert all(torch.equal(back[name], tensor) for name, tensor in TENSORS.items())


def test_a_state_has_a_checksum_that_changes_with_one_bit(tmp_path):
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
