"""DRFLM (arXiv 2204.07742): sites with a large loss weigh more, and each trains on mixtures of its own images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from samfed_monai.core.errors import did_you_mean, refused
from samfed_monai.core.validators import in_range, require
from samfed_monai.handlers.guide import Guidance
from samfed_monai.handlers.records import SUPERVISED, record
from samfed_monai.methods.mixup import Mixture, NeighbourMixUp
from samfed_monai.methods.site_weights import LearnedWeights


def ascent_step(weights: Tensor, losses: Tensor, step: float) -> Tensor:
    """Takes one ascent step of ``sum_i lambda_i f_i`` in lambda, on the simplex.

    That is ``lambda_i exp(step f_i) / sum_j lambda_j exp(step f_j)``. Only differences of losses matter: with equal
    losses or a step of 0, ``weights`` is returned.

    Args:
        weights: (N,) float, on the simplex.
        losses: (N,) float, one per site.
        step: step size, >= 0.

    Returns:
        (N,) float64 on the simplex.
    """
    if step == 0 or bool((losses == losses[0]).all()):
        return weights.double()
    exponents = step * (losses.double() - losses.double().max())  # <= 0, so that no exponential overflows
    unnormalised = weights.double() * exponents.exp()
    return unnormalised / unnormalised.sum() if unnormalised.sum() > 0 else weights.double()


class DistributionallyRobust(LearnedWeights):
    """``min_w max_lambda sum_i lambda_i f_i(w)`` over the simplex (DRFLM: Wu et al., arXiv 2204.07742).

    Our reading: we had the paper's abstract and the minimax objective that it shares with agnostic federated learning
    (Mohri et al., arXiv 1902.00146, equation 4), not its algorithm. ``f_i`` is a mean over the site's local epoch: the
    loss of mixtures over all pixels. Over confident pixels only, it would be smallest at the site that needs most help,
    where the network is sure of nothing. The paper samples sites by lambda; here all sites take part and lambda weights
    them. lambda starts at the sites' shares of all images, so that a step of 0 is FedAvg to the bit.

    Args:
        number: name of a value that a term of the bundle records on the site's own images; its mean is ``f_i``.
        step: step size in lambda, >= 0; 0 is FedAvg.

    Raises:
        Refused: an option out of its range.

    Example::

        "strategy": {"_target_": "samfed_monai.methods.drflm.DistributionallyRobust", "step": 0.1}
    """

    def __init__(self, *, number: str = "local_mixup_all", step: float = 0.1) -> None:
        require(in_range("strategy#step", step, least=0))
        super().__init__(number=number, equal_start=False)
        self.step = float(step)

    def require_terms(self, names: Sequence[str]) -> None:
        known = sorted({*names, SUPERVISED})
        if not any(self.number == name or self.number.startswith(f"{name}_") for name in known):
            expected = f"the term whose mean sets a site's weight, one of {known}"
            hint = did_you_mean(self.number, known) or "enable that term"
            raise refused("strategy#number", repr(self.number), expected, hint)

    def next_weights(self, round: int, weights: Tensor, numbers: Tensor) -> Tensor | None:
        return None if self.step == 0 else ascent_step(weights, numbers, self.step)


@dataclass(kw_only=True, eq=False)
class LocalMixUpTerm(NeighbourMixUp):
    """``a L(mixed, y) + (1 - a) L(mixed, y')`` on ``a x + (1 - a) x'``: mixup at the site (DRFLM, abstract).

    Zhang et al. (arXiv 1710.09412); ``a`` is drawn from Beta(alpha, alpha) once per batch, and ``x'`` is the neighbour
    of ``x`` in it. DRFLM's sites have labels; ours have none, so labels are the guide's where its confidence exceeds
    ``tau``, for both ``x`` and ``x'`` (SemiFL's term uses those of ``x'`` everywhere).

    Records ``<name>_all``, the same loss over all pixels.

    Args:
        name: name under which the value is logged.
        guide: the guide that gives the labels; ``weak`` is the student itself.
        tau: minimum confidence of a label.
        alpha: parameter of the Beta distribution, > 0.
        weight, schedule, fraction: see :class:`samfed_monai.handlers.Term`.

    Raises:
        Refused: an argument out of range.

    Example::

        {"_target_": "samfed_monai.methods.drflm.LocalMixUpTerm", "guide": "weak", "tau": 0.9, "alpha": 0.2}
    """

    name: str = "local_mixup"
    guide: str = "weak"
    tau: float = 0.9
    alpha: float = 0.2
    schedule: str = "gaussian_ramp"

    def neighbours(self, sure: Tensor) -> Tensor:
        return sure.roll(1, 0)

    def mixture(self, guidance: Guidance, engine: Any) -> Mixture:
        mixture = super().mixture(guidance, engine)
        with torch.no_grad():
            all_pixels = torch.ones_like(mixture.sure)
            record(engine, f"{self.name}_all", mixture.loss(all_pixels, all_pixels))
        return mixture
