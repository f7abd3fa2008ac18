"""The skin bundle's trainer with any variant."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import monai
import pytest
from monai.bundle import ConfigWorkflow

from samfed_monai.config import find_bundle, variant_files
from tests.workflow import workflow


@pytest.fixture(scope="module")
def build(small_federation: Path) -> Iterator[Callable[..., ConfigWorkflow]]:
    """The skin bundle's trainer with a variant, on two small synthetic sites."""
    bundle = find_bundle("samfed_skin")

    def make(variant: str, **override: Any) -> ConfigWorkflow:
        return workflow(bundle, small_federation, variant_files(bundle, variant), **{"standalone": {}, **override})

    before = monai.data.get_track_meta()
    yield make
    monai.data.set_track_meta(before)
