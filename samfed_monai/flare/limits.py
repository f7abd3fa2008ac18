"""What a site file says about the process that reads it: its memory, its threads, its folder of checkpoints."""

from __future__ import annotations

import os
import resource

from samfed_monai.flare.site_file import SiteFile


def limit(files: SiteFile) -> None:
    """Sets what the file says; before torch is imported, where that can be."""
    if files.weights is not None:
        os.environ["SAMFED_WEIGHTS"] = str(files.weights)
    if files.memory_limit_gib is not None:
        most = int(files.memory_limit_gib * 1024**3)
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    if files.threads is not None:
        import torch

        torch.set_num_threads(int(files.threads))
