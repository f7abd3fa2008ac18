"""Opacus' bound against the exact value of Gaussian composition."""

import math

import pytest
from scipy.optimize import brentq
from scipy.stats import norm

from samfed_monai.core.errors import Refused
from samfed_monai.federation.privacy import DifferentialPrivacy, Privacy, epsilon, privacy_account

DELTA = 1e-5


def exact(noise_multiplier: float, releases: int) -> float:
    """Balle and Wang (ICML 2018), theorem 8: T releases are one with sensitivity sqrt(T)."""
    mu = math.sqrt(releases) / noise_multiplier

    def delta(eps: float) -> float:
        return norm.cdf(mu / 2 - eps / mu) - math.exp(eps) * norm.cdf(-mu / 2 - eps / mu)

    return brentq(lambda eps: delta(eps) - DELTA, 0.0, 500.0)


@pytest.mark.parametrize("noise_multiplier", [0.5, 1.0, 4.0, 20.0])
@pytest.mark.parametrize("releases", [1, 30])
def test_the_bound_lies_a_little_above_the_exact_value(noise_multiplier, releases):
    pytest.importorskip("opacus", reason="the accountant is an extra")
    bound = epsilon(noise_multiplier, releases, DELTA)
    assert exact(noise_multiplier, releases) < bound < 1.25 * exact(noise_multiplier, releases)


def test_nothing_sent_is_nothing_spent():
    assert epsilon(1.0, 0, DELTA) == 0.0


def test_the_account_of_a_run_follows_each_site_s_own_count():
    pytest.importorskip("opacus", reason="the accountant is an extra")
    records = [
        {"sites": {"Basel": {"releases": 1}, "Bern": {"releases": 1}}},
        {"sites": {"Basel": {"releases": 3}, "Bern": {"status": "skipped"}}},  # Basel sent one that never came
    ]
    account = privacy_account(Privacy(5, DifferentialPrivacy(noise_multiplier=2.0)), records, {("Bern", "test"): "why"})
    noise = account["differential_privacy"]
    assert account["withheld"] == [{"site": "Bern", "split": "test", "reason": "why"}]
    assert noise["releases"] == {"Basel": 3, "Bern": 1}
    assert noise["epsilon"] == {"Basel": epsilon(2.0, 3, DELTA), "Bern": epsilon(2.0, 1, DELTA)}
    assert noise["epsilon_per_round"] == noise["epsilon"]["Bern"]
    assert noise["epsilon_total"] == noise["epsilon"]["Basel"]


def test_without_noise_no_accountant_is_needed():
    assert privacy_account(Privacy(), [], {})["differential_privacy"] is None


def test_a_missing_accountant_is_told_with_the_command(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "opacus.accountants.analysis", None)
    with pytest.raises(Refused, match=r"pip install samfed-monai\[privacy\]"):
        epsilon(1.2345, 1, DELTA)
