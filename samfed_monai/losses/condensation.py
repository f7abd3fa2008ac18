"""Whose opinion of a public image is worth learning: the gates of condensation and fusion (docs/method.md)."""

from __future__ import annotations

from enum import Enum

import torch
from torch import Tensor

from samfed_monai.losses.channels import dice_of_labels, hard_label


class Reliability(str, Enum):
    """How well soft masks of labelled images match their labels."""

    DICE = "dice"
    PIXEL_ACCURACY = "pixel_accuracy"


def image_reliability(probabilities: Tensor, labels: Tensor, measure: str = "dice") -> Tensor:
    """How far each image's prediction can be trusted, measured on its label.

    ``dice`` is ours: accuracy, which HSSF's code takes (Ma et al., TMI 2024), rewards an empty mask on an image whose
    lesion is small.

    Args:
        probabilities: (N, C, H, W) float in [0, 1].
        labels: (N, 1, H, W), class indices (0 or 1 for C = 1).
        measure: ``dice`` or ``pixel_accuracy``.

    Returns:
        (N,) float in [0, 1].

    Raises:
        ValueError: an unknown measure.
    """
    predicted = hard_label(probabilities)[0]
    if Reliability(measure) is Reliability.PIXEL_ACCURACY:
        return (predicted == labels.long()).float().mean(dim=(1, 2, 3))
    return dice_of_labels(predicted, labels.long())


def most_reliable(sites: Tensor, own: Tensor, floor: float = 0.75) -> tuple[Tensor, Tensor]:
    """Condensation: for each image the site to learn from, and whether to learn from it at all.

    Args:
        sites: (S, N) reliabilities of S sites on N images.
        own: (N,) the server's.
        floor: a target must be more reliable than this (HSSF: 0.75).

    Returns:
        (N,) long, the most reliable site of each image (the first among equals); (N,) bool, whether that site is
        better than the server and above ``floor``.
    """
    best, site = sites.max(dim=0)
    return site, (best > own) & (best > floor)


def where_better(theirs: Tensor, own: Tensor) -> Tensor:
    """Fusion: the images on which the server is more reliable than the site; (N,) bool."""
    return theirs > own


def choose(masks: Tensor, site: Tensor) -> Tensor:
    """The chosen site's mask of each image: (S, N, ...) and (N,) long to (N, ...)."""
    return masks[site, torch.arange(masks.shape[1])]
