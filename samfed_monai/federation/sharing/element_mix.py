"""Element by element between a site's weights and the global ones."""

from __future__ import annotations

import torch
from torch import Tensor


def mixed(local: Tensor, common: Tensor, weight: Tensor) -> Tensor:
    """``local + weight (common - local)`` (FedALA, Zhang et al., arXiv 2212.01197); exact at 0 and at 1.

    Args:
        local, common: weights of the site and of the server, of any one shape.
        weight: of the same shape, in [0, 1].
    """
    return torch.lerp(local, common, weight)


def learned(weight: Tensor, gradient: Tensor, local: Tensor, common: Tensor, rate: float) -> Tensor:
    """One gradient step of the mixing weights, clipped to [0, 1] (FedALA).

    The loss depends on a mixing weight through one element alone, so its gradient there is ``gradient (common -
    local)``.

    Args:
        weight: mixing weights in [0, 1].
        gradient: of the loss with respect to the mixture; all of one shape.
        local, common: what is mixed.
        rate: step size.
    """
    return (weight - rate * gradient * (common - local)).clamp_(0.0, 1.0)
