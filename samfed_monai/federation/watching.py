"""What can be watched of a run while it goes on: ``progress.png``, and TensorBoard where that is installed."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from samfed_monai.core.io import write_bytes
from samfed_monai.federation.run_folder import round_traffic

logger = logging.getLogger(__name__)

PICTURE = "progress.png"
TENSORBOARD = "tensorboard"
"""The folder of a run that TensorBoard is pointed at, and the name of its package."""


def scalars_of(record: Mapping[str, Any]) -> dict[str, float]:
    """What a round's record has for TensorBoard, by tag.

    ``dice/<site>`` and ``dice/mean`` (over all validation images), ``terms/<name>/<site>``, ``seconds/<activity>``,
    ``MB/up`` and ``MB/down`` (all sites together, millions of bytes). What a round lacks has no tag.

    Args:
        record: content of ``round.json``.
    """
    scored = {site: entry["validation"]["dice"] for site, entry in record["sites"].items() if entry["validation"]}
    found: dict[str, float | None] = {f"dice/{site}": dice for site, dice in scored.items()}
    found["dice/mean"] = record["average"]["validation"]["dice"]
    for site, entry in record["sites"].items():
        found |= {f"terms/{name}/{site}": value for name, value in (entry.get("terms") or {}).items()}
    found |= {f"seconds/{activity}": value for activity, value in record["seconds"].items()}
    found |= {f"MB/{name.removesuffix('_bytes')}": count / 1e6 for name, count in round_traffic(record).items()}
    return {tag: value for tag, value in found.items() if value is not None}


class Watching:
    """Shows every round of a run once it is stored. A run never ends for it: what fails is told once and left out.

    Args:
        folder: the run's folder; ``progress.png`` is replaced, ``tensorboard/`` is added to.

    Example::

        with Watching("runs/a") as watching:
            watching(records)
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._writer: Any = None
        self._failed: set[str] = set()

    def __enter__(self) -> Watching:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def __call__(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Shows the last of ``records``, which are those of all rounds so far."""
        for show in (self._draw, self._write_scalars):
            name = show.__name__
            if name in self._failed:
                continue
            try:
                show(records)
            except Exception as error:  # a broken TensorBoard, a full disk: what matters is stored already
                self._failed.add(name)
                what = PICTURE if show == self._draw else TENSORBOARD
                logger.warning("%s is not written any more: %s: %s", what, type(error).__name__, error)

    def _draw(self, records: Sequence[Mapping[str, Any]]) -> None:
        from samfed_monai.reports.figures import progress
        from samfed_monai.reports.run_data import read_federation

        picture = progress(read_federation(self.folder / "federation.csv"), records[-1]["rounds"])
        if picture is not None:
            write_bytes(self.folder / PICTURE, picture)

    def _write_scalars(self, records: Sequence[Mapping[str, Any]]) -> None:
        package = find_spec(TENSORBOARD)
        if package is None or package.origin is None:  # without an origin it is a mere folder, for instance a run's
            return
        record = records[-1]
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            # of a run that goes on after a stop, what was written of later rounds counts no more
            self._writer = SummaryWriter(str(self.folder / TENSORBOARD), purge_step=record["round"] + 1)
        for tag, value in scalars_of(record).items():
            self._writer.add_scalar(tag, value, record["round"] + 1)
        self._writer.flush()
