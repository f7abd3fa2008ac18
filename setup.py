"""Copies the bundles into the wheel; everything else is in setup.cfg."""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

BUNDLES = Path(__file__).parent / "bundles"


class BuildWithBundles(build_py):
    """Copies ``bundles/`` into the wheel as ``samfed_monai/bundles/``; of weights only ``models/model.pt``."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib) / "samfed_monai" / "bundles"
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(BUNDLES, target, ignore=_left_out)


_WEIGHTS = shutil.ignore_patterns("*.pt", "*.pth", "*.safetensors")
_OTHERS = shutil.ignore_patterns("eval", "__pycache__", ".*.tmp")


def _left_out(folder: str, names: list[str]) -> set[str]:
    own = {"model.pt"} if Path(folder).name == "models" else set()
    return _WEIGHTS(folder, names) - own | _OTHERS(folder, names)


setup(cmdclass={"build_py": BuildWithBundles})
