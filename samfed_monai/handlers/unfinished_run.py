"""What a failed run leaves in an Ignite engine."""

from __future__ import annotations

from typing import Any


def forget_unfinished_run(engine: Any) -> None:
    """Makes an engine whose run failed ready for the next one.

    After an exception Ignite keeps the dead generator of that run, and the next ``run()`` returns at once (0.5.5).
    """
    for name in ("_internal_run_generator", "_dataloader_iter", "_init_iter"):
        if hasattr(engine, name):
            setattr(engine, name, None)
