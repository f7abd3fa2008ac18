"""What tests of other processes wait for."""

import time
from collections.abc import Callable
from pathlib import Path


def wait_until(holds: Callable[[], bool], what: str, *, seconds: float) -> None:
    """Waits for something that other processes do, and fails if it does not happen."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
