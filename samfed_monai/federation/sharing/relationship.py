"""How much one site takes from each site's core model: APPLE's directed relationship vector."""

from __future__ import annotations

import math
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

#: Where the exponential schedule ends (the authors' code).
_EPSILON = 0.001


class Annealing(str, Enum):
    """How the pull towards the prior fades."""

    EXPONENTIAL = "exponential"
    COSINE = "cosine"


def personal_model(shares: Tensor, cores: Tensor) -> Tensor:
    """``w_i = sum_j p_ij c_j`` (APPLE, Luo and Wu, arXiv 2110.08394).

    Args:
        shares: (N,) float, ``p_i``; not bounded.
        cores: (N, P) float, every site's core model.

    Returns:
        (P,) float.
    """
    return shares @ cores


def shares_gradient(gradient: Tensor, cores: Tensor, shares: Tensor, prior: Tensor, pull: float) -> Tensor:
    """Gradient of ``L(w_i) + pull / 2 |p_i - p_0|^2`` with respect to ``p_i``: ``<dL/dw_i, c_j> + pull (p_ij - p_0j)``.

    Args:
        gradient: (P,) float, ``dL/dw_i``.
        cores, shares: as :func:`personal_model` takes them.
        prior: (N,) float, ``p_0``.
        pull: ``lambda(r) mu``.

    Returns:
        (N,) float.
    """
    return cores @ gradient + pull * (shares - prior)


def annealed(round: int, rounds: int, *, schedule: str = "exponential", fraction: float = 0.1) -> float:
    """``lambda(r)``: 1 in round 0, nothing after the first ``fraction`` of the rounds (APPLE's loss scheduler).

    ``exponential`` is ``0.001^(r / L)``, ``cosine`` is ``(cos(pi r / L) + 1) / 2``, both for ``r < L``, with ``L`` the
    whole number of rounds in ``fraction rounds``.
    """
    length = int(fraction * rounds)
    if round >= length:
        return 0.0
    if Annealing(schedule) is Annealing.COSINE:
        return (math.cos(math.pi * round / length) + 1) / 2
    return float(_EPSILON ** (round / length))
