"""Everything about the package stands in setup.cfg; only the bundles' way into the wheel is code."""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

BUNDLES = Path(__file__).parent / "bundles"


class BuildWithBundles(build_py):
    """Copies ``bundles/`` into the wheel as ``samfed_monai/bundles/``, without weights."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib) / "samfed_monai" / "bundles"
        shutil.rmtree(target, ignore_errors=True)
        ignored = shutil.ignore_patterns("*.pt", "*.pth", "*.safetensors", "eval", "__pycache__", ".*.tmp")
        shutil.copytree(BUNDLES, target, ignore=ignored)


setup(cmdclass={"build_py": BuildWithBundles})
