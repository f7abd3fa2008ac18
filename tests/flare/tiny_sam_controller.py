"""The real controller, in a server that has the small SAM in its catalogue."""

from __future__ import annotations

from pathlib import Path

from samfed_monai.flare.controller import FederationController


class TinySamController(FederationController):
    def federate(self, folder: Path) -> None:
        from tests.flare.tiny_sam import register

        register()
        super().federate(folder)
