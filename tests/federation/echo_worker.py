"""A process that answers with what it was sent; it imports nothing heavy."""

from __future__ import annotations

import os
import sys

from samfed_monai.federation.child_process import Ended, read_frame, write_frame


def main() -> int:
    down, up = os.fdopen(int(sys.argv[1]), "rb"), os.fdopen(int(sys.argv[2]), "wb")
    settings, _ = read_frame(down)
    greeting = {name: settings[name] for name in ("greeting",) if name in settings}
    try:
        while True:
            head, payload = read_frame(down)
            if head["task"] == "exit":
                return 3
            write_frame(up, {**greeting, "task": head["task"]}, payload)
    except Ended:
        return 0


if __name__ == "__main__":
    sys.exit(main())
