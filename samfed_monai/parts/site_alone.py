"""What a site that trains on its own does between epochs, where a federation has its controller."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from samfed_monai.handlers.best_weights_saver import BestWeightsSaver
from samfed_monai.handlers.handler_group import HandlerGroup
from samfed_monai.handlers.term_table import TermTable

if TYPE_CHECKING:
    from monai.engines import SupervisedEvaluator


class SiteAlone(HandlerGroup):
    """Validates after every epoch, keeps the best weights, writes a table of the terms, and shows a progress bar.

    Args:
        evaluator: of the site's validation images.
        output_dir: receives ``best.safetensors`` and ``terms.csv``.
        interval: epochs from one validation to the next.

    Example::

        {"_target_": "samfed_monai.parts.SiteAlone", "evaluator": "@validate#evaluator", "output_dir": "@output_dir"}
    """

    def __init__(self, *, evaluator: SupervisedEvaluator, output_dir: str | Path, interval: int = 1) -> None:
        from ignite.handlers import ProgressBar
        from monai.handlers import ValidationHandler

        super().__init__(
            handlers=[
                ValidationHandler(interval, evaluator),
                BestWeightsSaver(evaluator=evaluator, path=Path(output_dir) / "best.safetensors"),
                TermTable(evaluator=evaluator, path=Path(output_dir) / "terms.csv"),
                ProgressBar(persist=True),
            ]
        )
