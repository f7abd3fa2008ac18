"""Accounting: Opacus' bound against the exact value of Gaussian composition, a site's ledger, and a run's account."""

from __future__ import annotations

import json
import math

import pytest
from scipy.optimize import brentq
from scipy.stats import norm

from samfed_monai.privacy import DifferentialPrivacy, Privacy, epsilon, privacy_account
from samfed_monai.privacy.accounting import PrivacyLedger, epsilon_of
from samfed_monai.protocol import MessageRefused

DELTA = 1e-5
LIMIT = 8.0
ONE = 1.0, DELTA  # epsilon 4.7 for one release at delta 1e-5, 7.1 for two, 9.0 for three


def exact(noise_multiplier: float, releases: int) -> float:
    """Balle and Wang (ICML 2018), theorem 8: T releases are one with sensitivity sqrt(T)."""
    mu = math.sqrt(releases) / noise_multiplier

    def delta(eps: float) -> float:
        return norm.cdf(mu / 2 - eps / mu) - math.exp(eps) * norm.cdf(-mu / 2 - eps / mu)

    return brentq(lambda eps: delta(eps) - DELTA, 0.0, 500.0)


@pytest.mark.parametrize("noise_multiplier", [0.5, 1.0, 4.0, 20.0])
@pytest.mark.parametrize("releases", [1, 30])
def test_epsilon_bound_is_close_to_exact_value(noise_multiplier, releases):
    bound = epsilon(noise_multiplier, releases, DELTA)
    assert exact(noise_multiplier, releases) < bound < 1.25 * exact(noise_multiplier, releases)


def test_account_counts_releases_per_site():
    records = [
        {"sites": {"Basel": {"releases": 1}, "Bern": {"releases": 1}}},
        # Basel sent one that never came, and Bern perhaps one in each of two rounds
        {"sites": {"Basel": {"releases": 3}, "Bern": {"status": "skipped"}}},
        {"sites": {"Basel": {"releases": 4}, "Bern": {"status": "skipped"}}},
    ]
    account = privacy_account(Privacy(5, DifferentialPrivacy(noise_multiplier=2.0)), records, {("Bern", "test"): "why"})
    noise = account["differential_privacy"]
    assert account["withheld"] == [{"site": "Bern", "split": "test", "reason": "why"}]
    assert noise["releases"] == {"Basel": 4, "Bern": 3}
    assert noise["epsilon"] == {"Basel": epsilon(2.0, 4, DELTA), "Bern": epsilon(2.0, 3, DELTA)}
    assert noise["epsilon_per_round"] == epsilon(2.0, 1, DELTA)
    assert noise["epsilon_total"] == noise["epsilon"]["Basel"]
    # an audit file that was taken away: Basel counts anew, and whether its skipped answers were sent is not known
    anew = [{"sites": {"Basel": {"releases": number}}} for number in (1, 2)]
    account = privacy_account(Privacy(5, DifferentialPrivacy(noise_multiplier=2.0)), [*records, *anew, *anew], {})
    assert account["differential_privacy"]["releases"] == {"Basel": 8, "Bern": 3}


def ledger(folder, limit: float | None = LIMIT, run="a") -> PrivacyLedger:
    return PrivacyLedger(folder, "Bern", limit, run=run)


def test_ledger_budget_is_shared_by_run_names(tmp_path):
    ledger(tmp_path, None, "first").enter(*ONE)  # before the site asks for an epsilon
    ledger(tmp_path, run="second").enter(*ONE)
    expected = "privacy budget: expected at most 8, the limit in the site file, found eps"
    with pytest.raises(MessageRefused, match=expected):
        ledger(tmp_path, run="third").enter(*ONE)
    path = tmp_path / "privacy" / "Bern.jsonl"
    runs = [json.loads(line)["run"] for line in path.read_text().splitlines()]
    assert runs == ["first", "second"], "refused releases are not entered"
    assert path.stat().st_mode & 0o777 == 0o600
    assert ledger(tmp_path).spent() == {1.0: 2}
    PrivacyLedger(tmp_path, "Basel", LIMIT).enter(*ONE)  # another site has a budget of its own


def test_each_release_counts_with_own_noise(tmp_path):
    own = ledger(tmp_path)
    for noise in (1.0, 1.0, 100.0):  # three at 100 would be 0.1: what was sent at 1 stays as dear as it was
        own.enter(noise, DELTA)
    assert own.spent() == {1.0: 2, 100.0: 1}
    assert epsilon(1.0, 2, 1e-5) < epsilon_of({1.0: 2, 100.0: 1}, 1e-5) < epsilon(1.0, 2, 1e-5) + 0.05
    with pytest.raises(MessageRefused, match="privacy budget"):
        own.enter(*ONE)


def test_large_delta_does_not_lower_spent_budget(tmp_path):
    assert epsilon(1.0, 3, 0.1) < 8.0
    own = ledger(tmp_path)
    own.enter(1.0, 0.1)
    own.enter(1.0, 0.1)
    with pytest.raises(MessageRefused, match="privacy budget"):
        own.enter(1.0, 0.1)


@pytest.mark.parametrize(("sent", "spent"), [((4.0, 2.0), {2.0: 2, 4.0: 1}), ((), {1.0: 1})])
def test_truncated_ledger_line_counts_with_least_noise(tmp_path, sent, spent):
    own = ledger(tmp_path)
    own.path.parent.mkdir()
    for noise in sent:
        own.enter(noise, DELTA)
    with own.path.open("a") as stream:
        stream.write('{"time": "2026')
    assert own.spent() == spent
