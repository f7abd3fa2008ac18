"""The real controller, in the server's own process, with a copy kept of every byte that goes down and comes up."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from samfed_monai.federation.wire_transport import Post, Request
from samfed_monai.flare.controller import FederationController, FlarePost

FOLDER = "SAMFED_TEST_SPY"


class RecordingPost(FlarePost):
    """Writes ``<number>.down`` and ``<number>.up`` into the folder that ``$SAMFED_TEST_SPY`` names."""

    def send(self, request: Request) -> Any:
        return super().send(replace(request, answered=lambda site, answer: self._answered(request, site, answer)))

    def _answered(self, request: Request, site: str, answer: bytes | str) -> None:
        folder = Path(os.environ[FOLDER])
        number = f"{len(list(folder.iterdir())):04d}-{site}-{request.task}"
        (folder / f"{number}.down").write_bytes(request.payload)
        (folder / f"{number}.up").write_bytes(answer if isinstance(answer, bytes) else answer.encode())
        request.answered(site, answer)


class SpyController(FederationController):
    def make_post(self) -> Post:
        return RecordingPost(self, self.run_name)
