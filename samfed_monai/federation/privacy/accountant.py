"""How much was given away: epsilon of repeated Gaussian releases, by Opacus' accountant."""

from __future__ import annotations

import warnings
from functools import lru_cache
from typing import Any

from samfed_monai.core.errors import Problem, Refused

#: Renyi orders that are tried; Opacus' own begin at 1.1 and end at 63, too few for strong and for weak noise.
_ORDERS = (*(1 + x / 100 for x in range(1, 100)), *(1 + x / 10 for x in range(10, 100)), *range(12, 64), 128, 256, 512)


@lru_cache(maxsize=1024)
def epsilon(noise_multiplier: float, releases: int, delta: float) -> float:
    """Epsilon of ``releases`` adaptive releases with Gaussian noise, without subsampling.

    Renyi differential privacy (Mironov, CSF 2017): an upper bound, here some 10 % above the exact value of Gaussian
    composition (Balle and Wang, ICML 2018), which the tests compare it with.

    Args:
        noise_multiplier: standard deviation over sensitivity.
        releases: how many; 0 gives 0.
        delta: in (0, 1).

    Raises:
        Refused: Opacus is not installed.
    """
    if releases == 0:
        return 0.0
    rdp = _analysis()
    spent = rdp.compute_rdp(q=1.0, noise_multiplier=noise_multiplier, steps=releases, orders=_ORDERS)
    with warnings.catch_warnings():  # "optimal order is the largest alpha": a bound all the same
        warnings.simplefilter("ignore")
        value, _ = rdp.get_privacy_spent(orders=_ORDERS, rdp=spent, delta=delta)
    return float(value)


def require_accountant() -> None:
    """Refuses a run with noise that nobody could account for."""
    _analysis()


def _analysis() -> Any:
    try:
        with warnings.catch_warnings():  # of Opacus about torch
            warnings.simplefilter("ignore")
            from opacus.accountants.analysis import rdp
    except ImportError:
        where, mend = "federate.json -> privacy -> differential_privacy", "pip install samfed-monai[privacy]"
        raise Refused([Problem(where, found="no Opacus", expected="its accountant", mend=mend)]) from None
    return rdp
