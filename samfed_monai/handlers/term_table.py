"""A CSV that grows by one row per epoch: terms, and validation beside them."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ignite.engine import Events

from samfed_monai.handlers.rounds import round_of
from samfed_monai.io import write_text

if TYPE_CHECKING:
    from ignite.engine import Engine


class TermTable:
    """Writes the means of :class:`TermLogger` as CSV, for a trainer that runs on its own.

    List it after ``TermLogger`` and MONAI's ``ValidationHandler``. The file is replaced as a whole after each epoch.

    Args:
        path: CSV file.
        evaluator: whose metrics become further columns; ``None`` adds none.

    Example::

        {"_target_": "samfed_monai.handlers.TermTable", "path": "$@output_dir + '/terms.csv'"}
    """

    def __init__(self, *, path: str | Path, evaluator: Engine | None = None) -> None:
        self.path, self.evaluator = Path(path), evaluator
        self._rows: list[dict[str, Any]] = []

    def attach(self, engine: Engine) -> None:
        """Binds the table to a trainer."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Any) -> None:
        """Adds the epoch's row."""
        number, _ = round_of(engine)
        row = {"round": number + 1, "epoch": engine.state.epoch, **getattr(engine.state, "term_means", {})}
        if self.evaluator is not None:
            row |= {f"validation_{name}": value for name, value in self.evaluator.state.metrics.items()}
        self._rows.append(row)
        text = io.StringIO()
        columns = list(dict.fromkeys(name for row in self._rows for name in row))
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows)
        write_text(self.path, text.getvalue())
