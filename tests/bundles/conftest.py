"""Every bundle of the repository, one after the other."""

from __future__ import annotations

from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
BUNDLES = sorted(path.parents[1] for path in (REPOSITORY / "bundles").glob("*/configs/metadata.json"))


@pytest.fixture(scope="session", params=BUNDLES, ids=lambda bundle: bundle.name)
def bundle(request: pytest.FixtureRequest) -> Path:
    """A bundle's folder."""
    folder: Path = request.param
    return folder
