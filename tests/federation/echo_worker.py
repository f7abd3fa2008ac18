"""A process that answers with what it was sent; it imports nothing heavy."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from samfed_monai.federation.child_process import Reply, serve


def start(settings: dict[str, Any]) -> Callable[[dict[str, Any], bytes], Reply]:
    greeting = {name: settings[name] for name in ("greeting",) if name in settings}

    def answer(head: dict[str, Any], payload: bytes) -> Reply:
        if head["task"] == "exit":
            sys.exit(3)
        if head["task"] == "fail":
            return {"failure": "refused"}, b""
        return {**greeting, "task": head["task"]}, payload

    return answer


if __name__ == "__main__":
    serve(start)
