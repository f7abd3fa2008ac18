"""Which units of a network sites agree on: cosines of their updates, and masks made of them."""

from __future__ import annotations

import torch
from torch import Tensor


def agreement(updates: Tensor, counts: Tensor) -> Tensor:
    """Cosine of each site's update of a unit and the weighted mean of the others' updates.

    0 where one of the two did not move: nothing speaks for taking the others' values.

    Args:
        updates: (S, U, K) float, what each of S sites added to the K numbers of each of U units.
        counts: (S,) float > 0, weights of the sites.

    Returns:
        (S, U) float in [-1, 1].
    """
    weighted = updates * counts[:, None, None]
    others = weighted.sum(dim=0, keepdim=True) - weighted
    lengths = updates.norm(dim=2) * others.norm(dim=2)
    cosine = (updates * others).sum(dim=2) / lengths.clamp(min=torch.finfo(updates.dtype).tiny)
    return cosine.clamp(-1.0, 1.0)


def binary_mask(agreed: Tensor, threshold: float) -> Tensor:
    """1 where a unit is common to this site and the others, 0 where it is the site's own."""
    return (agreed > threshold).to(agreed.dtype)


def smooth_mask(agreed: Tensor, threshold: float, temperature: float) -> Tensor:
    """``sigmoid((agreement - threshold) / temperature)``: :func:`binary_mask` where the temperature goes to 0."""
    return torch.sigmoid((agreed - threshold) / temperature)


def tailored(values: Tensor, masks: Tensor, counts: Tensor) -> Tensor:
    """Each site's units: the mean of those who hold a unit in common, as far as the mask says so, else its own.

    Args:
        values: (S, U, K) float, the sites' weights.
        masks: (S, U) float in [0, 1].
        counts: (S,) float > 0.

    Returns:
        (S, U, K) float: with masks of 1 the weighted mean for everybody, with masks of 0 ``values``.
    """
    shares = masks * counts[:, None]
    total = shares.sum(dim=0).clamp(min=torch.finfo(values.dtype).tiny)
    common = (values * shares[:, :, None]).sum(dim=0) / total[:, None]
    return torch.lerp(values, common.expand_as(values), masks[:, :, None].expand_as(values))
