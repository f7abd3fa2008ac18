"""A process of our own, as it begins: ``samfed``, what trains at a site, FLARE's process of a job at the server."""

from __future__ import annotations

from samfed_monai.core.allocator import keep_freed_memory
from samfed_monai.core.imports import collect_after_import
from samfed_monai.core.openmp import spin_briefly


def set_up_process() -> None:
    """Allocator, threads and imports as training wants them; to be called before torch is imported.

    A library's caller has a process of theirs, and none of it is changed.
    """
    keep_freed_memory()
    spin_briefly()
    collect_after_import("torch", "monai")
