"""Files as everything here reads and writes them: atomic, strict, never a pickle; torch only where tensors are."""

from samfed_monai.io.documents import read_json, write_json
from samfed_monai.io.files import append_line, atomic_write, sync_folder, write_bytes, write_text
from samfed_monai.io.hashes import canonical_hash, sha256_bytes, sha256_file
from samfed_monai.io.tensors import check_tensors, safe_load, save_tensors

__all__ = [
    "append_line",
    "atomic_write",
    "canonical_hash",
    "check_tensors",
    "read_json",
    "safe_load",
    "save_tensors",
    "sha256_bytes",
    "sha256_file",
    "sync_folder",
    "write_bytes",
    "write_json",
    "write_text",
]
