"""Which SAM a client network stands on: its frozen weights never travel, so every site must have the same file."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from samfed_monai.core.io import sha256_file
from samfed_monai.federation.stages.workflow_config import WorkflowConfig, in_catalogue
from samfed_monai.networks import find_checkpoint

_PREFIX = "sam_"


def base_sam(config: WorkflowConfig, network: str) -> str | None:
    """SHA-256 of the checkpoint under a client network; ``None`` for one that is no SAM.

    Args:
        config: a run's or a site's ``train.json``.
        network: name of the network.

    Raises:
        Refused: there is no such file here; the message holds the command that mends it.
    """
    if not network.startswith(_PREFIX) or not in_catalogue(parser := config.parser()):
        return None
    given = parser.get()["network_def"].get("checkpoint")
    path = Path(given) if given else find_checkpoint(network.removeprefix(_PREFIX))
    status = path.stat()
    return _sha256(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=16)
def _sha256(path: Path, size: int, changed: int) -> str:
    return sha256_file(path)
