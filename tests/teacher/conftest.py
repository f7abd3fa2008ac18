"""The random MobileSAM of the networks' tests, and a small teacher for tests of its use."""

import pytest

from samfed_monai.networks import Teacher
from tests.networks.conftest import checkpoint  # noqa: F401
from tests.networks.sam.tiny import SIZE, tiny_sam

SHA256 = "ab" * 32


@pytest.fixture
def teacher() -> Teacher:
    return Teacher(tiny_sam(), sha256=SHA256, size=SIZE, bf16=False)
