"""A SAM that is a mere file: its teachers are known by their adapters, and their masks do not depend on the image."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import samfed_monai.networks.fpn
import samfed_monai.teacher.fit  # noqa: F401 - both take read_header by name: before it is patched, not while
from samfed_monai.core.errors import Refused
from samfed_monai.core.io import canonical_hash, sha256_bytes, sha256_file
from samfed_monai.federation.teacher import TeacherStage
from samfed_monai.networks.sam import adapter as adapters
from samfed_monai.networks.sam.adapter import Adapt

SAM = sha256_bytes(b"sam")


def fitted(on: str = SAM, name: str = "one") -> bytes:
    """An adapter's content: a name, and the SAM that it was fitted on."""
    return f"{name}|{on}".encode()


class Half(torch.nn.Module):
    """A teacher whose masks are the left half of every image."""

    size, views = 64, 1

    def __init__(self, sha256: str) -> None:
        super().__init__()
        self.sha256 = sha256

    def probabilities(self, images: torch.Tensor) -> torch.Tensor:
        masks = torch.zeros(len(images), 1, 16, 16)
        masks[..., :8] = 1
        return masks


def fake_sam(folder: Path, patch: pytest.MonkeyPatch) -> list[str]:
    """Puts it into a folder and in SAM's place; returns what gets the hash of each adapter that is loaded."""
    (folder / "sam.pt").write_bytes(b"sam")
    loaded: list[str] = []

    def load(**keywords):
        loaded.append(sha256_file(keywords["adapter"]) if keywords["adapter"] else "none")
        return Half(canonical_hash(loaded[-1]))

    def read_header(path):
        if b"|" not in Path(path).read_bytes():
            raise Refused([])
        return SimpleNamespace(adapt=Adapt.LORA, base_sha256=Path(path).read_bytes().partition(b"|")[2].decode())

    patch.setattr("samfed_monai.networks.sam.teacher.Teacher.load", load)
    patch.setattr(adapters, "read_header", read_header)
    patch.setattr(TeacherStage, "checkpoint", lambda self: folder / "sam.pt")
    return loaded
