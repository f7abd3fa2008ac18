"""How long a site keeps what it would go on from: the newest runs' states, and no others."""

from __future__ import annotations

import logging
import time
from pathlib import Path

logger = logging.getLogger(__name__)

#: Runs whose states a site keeps, the one that runs included, and seconds for which a run counts as running.
KEPT_RUNS, IN_USE = 3, 24 * 3600.0
#: File that stands where states were removed: whoever asks for them later is told so.
REMOVED = "removed"


def forget_old_runs(states: str | Path, run: str, *, kept: int = KEPT_RUNS, now: float | None = None) -> list[str]:
    """Removes the states of all but the newest runs; their logs stay.

    Args:
        states: folder with one folder per run, and in it one per site.
        run: the one that begins; it is kept, whatever its age.
        kept: so many runs are kept, ``run`` among them; a run whose files changed within :data:`IN_USE` always is.
        now: seconds since the epoch; ``None`` looks at the clock.

    Returns:
        The runs that were forgotten.
    """
    now = time.time() if now is None else now
    used = {folder.name: _last_used(folder) for folder in Path(states).iterdir() if folder.is_dir()}
    used.pop(run, None)
    newest = sorted((name for name in used if used[name]), key=lambda name: used[name], reverse=True)
    forgotten = [name for name in newest[max(kept - 1, 0) :] if now - used[name] > IN_USE]
    for name in forgotten:
        for path in (Path(states) / name).glob("*/*.safetensors"):
            (path.parent / REMOVED).touch(mode=0o600)
            path.unlink(missing_ok=True)
        logger.info("removed the states of run %s (the newest %d are kept)", name, kept)
    return forgotten


def _last_used(run: Path) -> float:
    """When a state of ``run`` was last written; 0 where there is none."""
    return max((path.stat().st_mtime for path in run.glob("*/*.safetensors")), default=0.0)
