"""How far a predicted mask is to be trusted, from its probabilities alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from ignite.engine import Events
from numpy.typing import NDArray

from samfed_monai.handlers.mask_writer import predictions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ignite.engine import Engine

DOUBTFUL = 0.7
"""Expected Dice below which a mask is called doubtful."""
COLUMNS = ("expected_dice", "lower_bound", "doubtful", "flags")
"""Heads that a table of areas has for it; ``doubtful`` is yes or empty, several flags have a semicolon between them."""


@dataclass(frozen=True)
class Assessment:
    """What is expected of one mask.

    Args:
        expected_dice: Dice with the unknown true mask, in [0, 1].
        lower_bound: that most true Dice values are above of, in [0, 1]; ``None`` without a calibration.
        flags: what is unusual about it, such as ``empty`` or ``touches the border``.
    """

    expected_dice: float
    lower_bound: float | None = None
    flags: tuple[str, ...] = ()

    @property
    def doubtful(self) -> bool:
        return self.expected_dice < DOUBTFUL

    def row(self) -> dict[str, Any]:
        """Cells of :data:`COLUMNS`."""
        bound = {} if self.lower_bound is None else {"lower_bound": round(self.lower_bound, 4)}
        marks = {"doubtful": "yes" if self.doubtful else "", "flags": "; ".join(self.flags)}
        return {"expected_dice": round(self.expected_dice, 4), **bound, **marks}


def assess(probability: NDArray[np.float32], mask: NDArray[Any]) -> Assessment:
    """An uncalibrated assessment: the Dice of a mask with its own probabilities, ``2 Σ q m / (Σ q + Σ m)``.

    Args:
        probability: (H, W) in [0, 1], of the foreground.
        mask: (H, W), foreground where it is not 0. An empty one of no probability at all is taken as right.
    """
    from scipy.ndimage import label

    drawn = mask > 0
    total = float(probability.sum()) + float(drawn.sum())
    dice = 2 * float(probability[drawn].sum()) / total if total else 1.0
    border = np.concatenate([drawn[0], drawn[-1], drawn[:, 0], drawn[:, -1]])
    flags = {
        "empty": not drawn.any(),
        "touches the border": border.any(),
        "several pieces": label(drawn, np.ones((3, 3)))[1] > 1,
    }
    return Assessment(dice, None, tuple(name for name, holds in flags.items() if holds))


class Assessor:
    """Assesses what a MONAI ``SupervisedEvaluator`` predicts, of each image.

    Args:
        threshold: probability from which a pixel is foreground, as of the masks that are written.
        classes: names of several classes; empty for one.
    """

    def __init__(self, *, threshold: float = 0.5, classes: Sequence[str] = ()) -> None:
        self.threshold, self.classes = threshold, classes
        self.found: dict[str, Assessment] = {}

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        for each in predictions(
            engine.state.batch, engine.state.output, threshold=self.threshold, classes=self.classes
        ):
            self.found[each.name] = assess(each.probability, each.mask)
