"""What the packaged bundles do to a teacher's images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser
from monai.transforms import Compose

ROOT = Path(__file__).parents[2]


def steps(bundle: str = "samfed_skin", **overrides: Any) -> Compose:
    """The list of a bundle's ``teacher.json``, for an input of 256 px."""
    parser = ConfigParser()
    parser.read_config(ROOT / "bundles" / bundle / "configs" / "teacher.json")
    for name, value in {"size": 256, **overrides}.items():
        parser[name] = value
    return parser.get_parsed_content("preprocessing")
