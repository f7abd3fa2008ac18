"""How far a predicted mask is to be trusted: its expected Dice, a lower bound, and what is unusual about it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from ignite.engine import Events
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, label, maximum_filter, minimum_filter

from samfed_monai.handlers.mask_writer import Prediction, predicted
from samfed_monai.metrics.quality import DOUBTFUL, Quality, colours_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ignite.engine import Engine
    from torch import Tensor

EMPTY = "empty"
"""Flag of a mask in which nothing is."""
COLUMNS = ("expected_dice", "lower_bound", "doubtful", "flags")
"""Heads that a table of areas has for it; ``doubtful`` is yes or empty, several flags have a semicolon between them."""
ENOUGH = 256
"""Pixels of a side on which pieces are counted, and the border is found."""
SPECK = 0.02
"""Share of the mask below which a piece of it is a speck and no piece of its own."""
BLACK = 0.1
"""Brightest channel of a pixel of an endoscope's frame: black of video is 16 of 255, and frames have noise."""
HAIR = 5
"""Pixels below which what is black is too thin for a frame."""


@dataclass(frozen=True)
class Assessment:
    """What is expected of one mask.

    Args:
        expected_dice: Dice with the unknown true mask, in [0, 1]; a little too high where nothing calibrates it, and 0
            of an empty mask, unless it is of a slice or frame, which may hold nothing.
        lower_bound: nine in ten masks have at least this Dice, in [0, 1]; ``None`` without a calibration.
        flags: what is unusual: ``empty``, ``touches the border`` (of the picture without its black frame), ``several
            pieces``, ``unlike the training images``.
        doubtful_below: expected Dice below which the mask is doubtful.
    """

    expected_dice: float
    lower_bound: float | None = None
    flags: tuple[str, ...] = ()
    doubtful_below: float = DOUBTFUL

    @property
    def doubtful(self) -> bool:
        return self.expected_dice < self.doubtful_below

    def of_nothing(self) -> Assessment:
        """That of a mask which is empty where something must be: no empty mask agrees with any other."""
        return replace(self, expected_dice=0.0, lower_bound=None if self.lower_bound is None else 0.0)

    def row(self) -> dict[str, Any]:
        """Cells of :data:`COLUMNS`."""
        bound = {} if self.lower_bound is None else {"lower_bound": round(self.lower_bound, 4)}
        marks = {"doubtful": "yes" if self.doubtful else "", "flags": "; ".join(self.flags)}
        return {"expected_dice": round(self.expected_dice, 4), **bound, **marks}


def flags_of(mask: NDArray[Any], image: NDArray[np.float32] | None = None, quality: Quality | None = None) -> list[str]:
    """What is unusual about a mask and its image, see :class:`Assessment`.

    Args:
        mask: (H, W), foreground where it is not 0.
        image: (3, H, W) in [0, 1], as the network saw it.
        quality: of the model, which may know the colours of the images that it was shown.
    """
    drawn = mask > 0
    seen = np.ones((1, *drawn.shape), np.float32) if image is None else image
    thin = max(1, max(seen.shape) // ENOUGH)
    edge = border_of(seen[:, ::thin, ::thin])
    rows, columns = (np.arange(size) * coarse // size for size, coarse in zip(drawn.shape, edge.shape, strict=True))
    step = max(1, max(drawn.shape) // ENOUGH)  # of a large picture every second, third, … pixel
    pieces = np.bincount(label(drawn[::step, ::step], np.ones((3, 3)))[0].ravel())[1:]
    colours = quality.colours if quality is not None else None
    found = {
        EMPTY: not drawn.any(),
        "touches the border": bool(edge[np.ix_(rows, columns)][drawn].any()),
        "several pieces": int((pieces >= SPECK * pieces.sum()).sum()) > 1,
        "unlike the training images": bool(colours and image is not None and not colours.hold(colours_of(image))),
    }
    return [name for name, holds in found.items() if holds]


def border_of(image: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Where a picture's content ends: (H, W), true at its outermost pixels, in its black frame and beside that.

    A frame is black, is connected with the edge of the picture, and is no thinner than :data:`HAIR`.

    Args:
        image: (C, H, W) in [0, 1].
    """
    black = np.pad(image.max(axis=0) < BLACK, HAIR, constant_values=True)
    regions, _ = label(maximum_filter(minimum_filter(black, HAIR), HAIR))
    found: NDArray[np.bool_] = binary_dilation(regions == regions[HAIR // 2, HAIR // 2])[HAIR:-HAIR, HAIR:-HAIR]
    return found


class Assessor:
    """Assesses what a MONAI ``SupervisedEvaluator`` predicts, of each image; :attr:`found` by the image's ``id``.

    Args:
        quality: what is known of the model; its calibration is for a threshold of 0.5.
        threshold: probability from which a pixel is foreground, as of the masks that are written.
        classes: names of several classes; empty for one.
        doubtful_below: expected Dice below which a mask is doubtful.
        parts: whether images are slices or frames, of which many rightly hold nothing.
    """

    def __init__(
        self,
        quality: Quality | None = None,
        *,
        threshold: float = 0.5,
        classes: Sequence[str] = (),
        doubtful_below: float = DOUBTFUL,
        parts: bool = False,
    ) -> None:
        self.quality, self.threshold, self.classes = quality or Quality(), threshold, classes
        self.doubtful_below, self.parts = doubtful_below, parts
        self.found: dict[str, Assessment] = {}

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        made = predicted(engine, threshold=self.threshold, classes=self.classes)
        for each, image in zip(made, _images(engine.state.batch), strict=True):
            self.found[each.name] = self.assess(each, image)

    def assess(self, found: Prediction, image: Tensor) -> Assessment:
        """One prediction; ``image`` is (3, H, W) float in [0, 1]."""
        flags = tuple(flags_of(found.mask, image.cpu().numpy(), self.quality))
        calibrated = self.quality.calibration if self.threshold == 0.5 else None
        expected, bound = calibrated(found.estimate) if calibrated else (found.estimate, None)
        made = Assessment(expected, bound, flags, self.doubtful_below)
        return made.of_nothing() if EMPTY in flags and not self.parts else made


def _images(batch: Any) -> list[Tensor]:
    """The images of a batch, decollated or not."""
    return [item["image"] for item in batch] if isinstance(batch, list) else list(batch["image"])
