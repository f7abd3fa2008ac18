"""The random MobileSAM of the networks' tests, and a small teacher for tests of its use."""

import pytest
import torch

from samfed_monai.networks import Teacher
from samfed_monai.networks.sam.build import assemble, vit_encoder
from tests.networks.conftest import checkpoint  # noqa: F401

SHA256 = "ab" * 32


@pytest.fixture
def teacher() -> Teacher:
    """A SAM of one block with random weights, at 64 px."""
    torch.manual_seed(0)
    sam = assemble(vit_encoder(64, width=16, depth=1, heads=2, global_blocks=(0,)), 64)
    return Teacher(sam, sha256=SHA256, size=64, bf16=False)
