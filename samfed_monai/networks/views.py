"""Test-time views: the symmetries of the square, and the mean of a network's probabilities over them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from samfed_monai.losses import probabilities


class View(NamedTuple):
    """One of the eight symmetries of the square: a mirror at the vertical axis, then quarter turns."""

    mirror: bool
    turns: int

    def apply(self, images: Tensor) -> Tensor:
        """``(..., H, W)`` to ``(..., H, W)``, or ``(..., W, H)`` after an odd number of turns."""
        return torch.rot90(images.flip(-1) if self.mirror else images, self.turns, (-2, -1))

    def undo(self, images: Tensor) -> Tensor:
        """The inverse of :meth:`apply`, exactly."""
        turned = torch.rot90(images, -self.turns, (-2, -1))
        return turned.flip(-1) if self.mirror else turned


VIEWS: dict[int, tuple[View, ...]] = {
    1: (View(False, 0),),
    2: (View(False, 0), View(True, 0)),
    4: (View(False, 0), View(True, 0), View(False, 2), View(True, 2)),
    8: tuple(View(mirror, turns) for mirror in (False, True) for turns in range(4)),
}
"""Number of test-time views to those views: none, mirror, both mirrors, mirror x quarter turns."""


def mean_of_views(images: Tensor, network: Callable[[Tensor], Tensor], views: int) -> Tensor:
    """Mean probability of a network over test-time views.

    Args:
        images: ``(B, 3, H, W)`` float in [0, 1].
        network: images to logits ``(B, C, H, W)``; sigmoid for one channel, softmax over the channels otherwise.
        views: 1, 2, 4 or 8. One after the other, so that memory is that of one.

    Returns:
        ``(B, C, H, W)`` float32 in [0, 1].
    """
    each = [view.undo(probabilities(network(view.apply(images)).float())) for view in VIEWS[views]]
    return torch.stack(each).mean(0)


def logits_of(chances: Tensor) -> Tensor:
    """Logits ``(B, C, H, W)`` that have these probabilities: finite, float32's spacing at 1 the least chance."""
    eps = torch.finfo(torch.float32).eps
    chances = chances.clamp(eps, 1 - eps)
    return torch.logit(chances) if chances.shape[1] == 1 else chances.log()
