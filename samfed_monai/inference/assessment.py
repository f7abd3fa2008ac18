"""How far a predicted mask is to be trusted: its expected Dice, a lower bound, and what is unusual about it.

What estimates were worth on images with labels, and the calibration that follows from it, is here as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, label, maximum_filter, minimum_filter
from scipy.stats import spearmanr

from samfed_monai.core.errors import refused
from samfed_monai.core.io import from_csv
from samfed_monai.core.words import counted
from samfed_monai.handlers.mask_writer import Prediction
from samfed_monai.metrics.quality import DOUBTFUL, FEWEST, Calibration, Quality, colours_of, estimate_of, groups_of

if TYPE_CHECKING:
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


def assess(
    found: Prediction,
    image: Tensor,
    quality: Quality,
    *,
    threshold: float = 0.5,
    doubtful_below: float = DOUBTFUL,
    parts: bool = False,
) -> Assessment:
    """How far one predicted mask is to be trusted.

    Args:
        found: the prediction.
        image: (3, H, W) float in [0, 1], as the network saw it.
        quality: what is known of the model; its calibration is for a threshold of 0.5.
        threshold: probability from which a pixel is foreground.
        doubtful_below: expected Dice below which a mask is doubtful.
        parts: whether the image is a slice or frame, of which many rightly hold nothing.
    """
    flags = tuple(flags_of(found.mask, image.cpu().numpy(), quality))
    calibrated = quality.calibration if threshold == 0.5 else None
    expected, bound = calibrated(found.estimate) if calibrated else (found.estimate, None)
    made = Assessment(expected, bound, flags, doubtful_below)
    return made.of_nothing() if EMPTY in flags and not parts else made


Pairs = Sequence[tuple[float, float]]
"""Estimate and true Dice of each image."""
FEWEST_RANKED = 5
"""Images without which no rank correlation is given."""


def scored_pairs(output_dir: Path, result: Mapping[str, Any]) -> dict[str, dict[str, tuple[float, float]]]:
    """Estimate and Dice of every image of ``samfed evaluate``, by site and id, from the tables that it wrote.

    Args:
        output_dir: its folder.
        result: content of its ``metrics.json``.
    """
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for site, summary in result["sites"].items():
        with (output_dir / site / result["split"] / "scores.csv").open(encoding="utf-8", newline="") as stream:
            found[site] = {row["id"]: (estimate_of(row, summary), float(row["dice"])) for row in from_csv(stream)}
    return found


def require_enough(images: int, split: str, which: str = "") -> None:
    """Refuses a calibration on too few images of a split."""
    if images < FEWEST:
        hint = "leave --calibrate out, choose another --split, or label more images"
        expected = f"at least {FEWEST} {split} images with masks"
        raise refused("--calibrate", found=f"{counted(images, 'image')}{which}", expected=expected, hint=hint)


def calibrated_on(pairs: Pairs, split: str) -> Calibration:
    """The calibration of a model on images of a split that it was not trained on; empty masks are left out.

    Raises:
        Refused: too few images.
    """
    groups = groups_of([estimate for estimate, _ in pairs], [dice for _, dice in pairs])
    require_enough(len(groups), split, " in which the model finds anything" if len(groups) < len(pairs) else "")
    return cast(Calibration, Calibration.fit(groups))


def kept(pairs: Pairs, calibration: Calibration | None, *, calibrating: int = 0) -> dict[str, Any]:
    """How far estimates can be relied on.

    Args:
        pairs: of images with labels.
        calibration: of the model; ``None`` takes estimates as they are, and there is no bound.
        calibrating: how many of the images are known to be of the calibration, on which it looks better than it is.

    Returns:
        ``images``; ``calibrated``; ``calibrating``; ``expected_dice`` and ``dice``, their means; ``error``, their mean
        distance; ``above_bound``, the share of images with at least their lower bound (``None`` without one);
        ``spearman``, the rank correlation of estimate and Dice (``None`` of fewer than five images, or where one never
        varies); ``worst_in_doubtful``, the share of the tenth with the lowest Dice that is in the fifth with the lowest
        estimates; ``dice_of_others``, the mean Dice of the other four fifths.
    """
    estimates, dice = (np.array(column, float) for column in zip(*pairs, strict=True))
    made = [calibration(each) if calibration else (each, None) for each in estimates.tolist()]
    expected = np.array([each for each, _ in made])
    held = [bound <= true + 1e-9 for (_, bound), true in zip(made, dice.tolist(), strict=True) if bound is not None]
    order, tenth, fifth = np.argsort(estimates, kind="stable"), max(1, len(dice) // 10), max(1, len(dice) // 5)
    worst, doubtful = set(np.argsort(dice, kind="stable")[:tenth].tolist()), set(order[:fifth].tolist())
    others, ranked = dice[order[fifth:]], len(dice) >= FEWEST_RANKED and np.ptp(estimates) and np.ptp(dice)
    return {
        "images": len(dice),
        "calibrated": calibration is not None,
        "calibrating": calibrating,
        "expected_dice": float(expected.mean()),
        "dice": float(dice.mean()),
        "error": float(np.abs(expected - dice).mean()),
        "above_bound": float(np.mean(held)) if held else None,
        "spearman": float(spearmanr(estimates, dice).statistic) if ranked else None,
        "worst_in_doubtful": len(worst & doubtful) / tenth,
        "dice_of_others": float(others.mean()) if len(others) else None,
    }


def sentences(found: Mapping[str, Any]) -> list[str]:
    """What :func:`kept` found, for a reader."""
    how = "expected" if found["calibrated"] else "expected (not calibrated)"
    lines = [
        f"{how} Dice {found['expected_dice']:.3f}, true {found['dice']:.3f}, {found['error']:.3f} apart on average"
    ]
    if found["above_bound"] is not None:
        lines.append(f"{found['above_bound']:.0%} of the masks have at least their lower bound (90 % are to)")
    if found["spearman"] is not None:
        lines.append(f"rank correlation of expected and true Dice {found['spearman']:.2f}")
    if some := found["calibrating"]:
        which = "these" if some == found["images"] else f"{some} of these"
        lines.append(
            f"{which} {counted(found['images'], 'image')} calibrated this model: on other images expected and true "
            "Dice are farther apart, and fewer masks are above their bound"
        )
    return lines
