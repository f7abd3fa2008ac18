"""One random MobileSAM for the whole room: building it takes a second."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.networks.fakes import fake_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vit_t with random weights under the official file name."""
    return fake_checkpoint(tmp_path_factory.mktemp("weights") / "mobile_sam.pt")
