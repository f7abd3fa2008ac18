"""Whether a mask would fit its picture better if it were transposed or turned: square pictures hide that (fault 3)."""

from __future__ import annotations

import numpy as np
from PIL import Image

from samfed_monai.data.reading import Picture

SIDE = 64


def misfit(picture: Picture, mask: Picture) -> float:
    """How much better the mask separates the picture's grey values after the best of five transpositions and turns.

    "Separates" is the share of the grey variance between foreground and background (Otsu's criterion), on 64 x 64
    pixels. A hint that orders the overlay page, not a proof: a round lesion in the middle fits in every direction.

    Args:
        picture: (H, W, 3) in 0..255.
        mask: (H, W) in {0, 1}.

    Returns:
        A difference in [-1, 1]; positive where another direction fits better. 0 for pictures that are not square and
        for empty or full masks.
    """
    height, width = mask.shape
    if height != width or not 0 < mask.mean() < 1:
        return 0.0
    grey = np.asarray(Image.fromarray(picture).convert("L").resize((SIDE, SIDE), Image.Resampling.BOX), dtype=float)
    small = Image.fromarray(mask * 255).resize((SIDE, SIDE), Image.Resampling.BOX)
    as_is = np.asarray(small) > 127
    others = (as_is.T, np.rot90(as_is), np.rot90(as_is, 2), np.rot90(as_is, 3), np.rot90(as_is.T, 2))
    return max(_separation(grey, other) for other in others) - _separation(grey, as_is)


def _separation(grey: np.ndarray, foreground: np.ndarray) -> float:
    share = foreground.mean()
    variance = grey.var()
    if not 0 < share < 1 or variance == 0:
        return 0.0
    distance = grey[foreground].mean() - grey[~foreground].mean()
    return float(share * (1 - share) * distance**2 / variance)
