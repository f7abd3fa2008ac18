"""The real controller, in a server whose teacher is one without SAM."""

from __future__ import annotations

from pathlib import Path

from samfed_monai.flare.controller import FederationController


class HalfTeacherController(FederationController):
    def federate(self, folder: Path) -> None:
        from tests.federation.half_teacher import install

        install()
        super().federate(folder)
