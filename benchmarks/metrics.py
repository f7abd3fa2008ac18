"""Dice, IoU and HD95 of mask pairs against MONAI's `compute_dice` and `compute_hausdorff_distance(percentile=95)`.

Pairs are lesions with a wavy border, some in several pieces, and predictions with errors at the border; and noise,
which has the most surface pixels.
"""

from __future__ import annotations

import argparse
import sys
import warnings

import numpy as np
import torch
from common import Figure, record, side_by_side
from monai.metrics import compute_dice, compute_hausdorff_distance
from scipy.ndimage import gaussian_filter, zoom

from samfed_monai.metrics import segmentation_scores

SIZE = 384
Pair = tuple[np.ndarray, np.ndarray]


def waves(rng: np.random.Generator, length: float) -> np.ndarray:
    """Smooth noise of unit variance with a wavelength of about ``length`` pixels."""
    coarse = gaussian_filter(rng.normal(size=(SIZE // 4, SIZE // 4)), length / 4)
    return zoom(coarse / coarse.std(), 4, order=1)


def lesions(rng: np.random.Generator) -> Pair:
    """A label of one to four ellipses with a wavy border, and a prediction with errors at a coarse and a fine scale."""
    rows, columns = np.mgrid[:SIZE, :SIZE]
    shape = np.full((SIZE, SIZE), -np.inf)
    for piece in range(1 if rng.random() < 0.7 else rng.integers(2, 5)):
        radius = rng.uniform(6, 35) if piece else rng.uniform(25, 120)
        row, column = rng.uniform(80, SIZE - 80, 2)
        turn, stretch = rng.uniform(0, np.pi), rng.uniform(0.7, 1.4)
        along = (columns - column) * np.cos(turn) + (rows - row) * np.sin(turn)
        across = (rows - row) * np.cos(turn) - (columns - column) * np.sin(turn)
        shape = np.maximum(shape, 1 - np.hypot(along / stretch, across * stretch) / radius)
    label = shape + 0.08 * waves(rng, 16) > 0
    return label, shape + 0.08 * waves(rng, 16) + 0.06 * waves(rng, 6) > 0


def noise(rng: np.random.Generator) -> Pair:
    """A blob as label, and noise as prediction."""
    return waves(rng, 40) > 0.5, gaussian_filter(rng.normal(size=(SIZE, SIZE)), 2) > 0


def pairs(make, count: int) -> list[Pair]:
    """``count`` pairs of prediction and label; neither is empty."""
    rng, made = np.random.default_rng(0), []
    while len(made) < count:
        label, prediction = make(rng)
        if label.any() and prediction.any():
            made.append((prediction, label))
    return made


def monai_scores(made: list[Pair], batch: int = 8) -> np.ndarray:
    """Dice and HD95 by MONAI, in batches."""
    found = []
    for start in range(0, len(made), batch):
        predictions, labels = (
            torch.from_numpy(np.stack(masks)[:, None]) for masks in zip(*made[start : start + batch], strict=True)
        )
        dice = compute_dice(predictions, labels)
        far = compute_hausdorff_distance(predictions, labels, include_background=True, percentile=95)
        found.append(torch.cat([dice, far], dim=1))
    return torch.cat(found).numpy()


def package_scores(made: list[Pair], pooled: bool = False) -> np.ndarray:
    scores = [segmentation_scores(*pair, pooled=pooled) for pair in made]
    return np.array([(score.dice, score.hd95) for score in scores])


def figure(what: str, made: list[Pair], repeats: int, *, bound: float | None = None, tolerance: float = 1e-4) -> Figure:
    difference = float(np.abs(package_scores(made) - monai_scores(made)).max())
    if difference > tolerance:
        sys.exit(f"{what}: the scores differ from MONAI's by {difference}, so the times cannot be compared")
    times = side_by_side(lambda: package_scores(made), lambda: monai_scores(made), repeats=repeats, warm_up=0)
    sizes = {"pairs": len(made), "size": SIZE, "largest_difference": difference}
    return Figure(what, times["ratio"], bound=bound, at_least=True, details={**times, **sizes})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning)  # from MONAI's own calls
    few = max(1, options.pairs // 20)
    record(
        __file__,
        [
            figure(
                f"Dice, IoU and HD95 of {options.pairs} pairs of lesion masks, {SIZE} px: MONAI's time against ours",
                pairs(lesions, options.pairs),
                options.repeats,
                bound=3.0,
            ),
            # MONAI interpolates the percentile in float32, which is imprecise for the 20,000 surface pixels of noise
            figure(f"the same for {few} predictions of noise", pairs(noise, few), options.repeats, tolerance=1e-3),
        ],
    )


if __name__ == "__main__":
    main()
