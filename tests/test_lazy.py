"""Importing the package or any room of it imports neither torch nor MONAI."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOMS = sorted(path.parent.name for path in (Path(__file__).parents[1] / "samfed_monai").glob("*/__init__.pyi"))


def imported_after(code: str) -> set[str]:
    """Top-level modules that are loaded in a new interpreter after running ``code``."""
    probe = f"import sys\n{code}\nprint(' '.join(sorted({{name.split('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    return set(done.stdout.split("\n")[-2].split())


def test_package_imports_no_heavy_modules():
    code = "\n".join(["import samfed_monai", *(f"import samfed_monai.{room}" for room in ROOMS)])
    assert not {"torch", "monai", "numpy", "ignite", "timm"} & imported_after(code)


@pytest.mark.parametrize("room", ROOMS)
def test_public_names_can_be_imported(room):
    module = __import__(f"samfed_monai.{room}", fromlist=["*"])
    names = [name for name in dir(module) if not name.startswith("_")]
    assert names
    for name in names:
        assert getattr(module, name) is not None
