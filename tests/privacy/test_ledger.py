"""A site's own epsilon over all of its runs: what the server calls a run, or plans for it, resets nothing."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from samfed_monai.privacy.ledger import PrivacyLedger
from samfed_monai.privacy.settings import DifferentialPrivacy, PrivacyFloor, epsilon, epsilon_of
from samfed_monai.protocol import MessageRefused

pytest.importorskip("opacus", reason="the accountant is an extra")

FLOOR = PrivacyFloor(epsilon=8.0)
ONE = DifferentialPrivacy(noise_multiplier=1.0)  # 4.7 for one release at delta 1e-5, 7.1 for two, 9.0 for three


def ledger(folder, floor=FLOOR) -> PrivacyLedger:
    return PrivacyLedger(folder, "Bern", floor)


def test_three_run_names_do_not_spend_the_floor_three_times(tmp_path):
    for run in ("first", "second"):
        ledger(tmp_path).enter(ONE, run=run)
    with pytest.raises(
        MessageRefused, match=r"privacy budget: expected at most 8, as this site's file says, found eps"
    ):
        ledger(tmp_path).enter(ONE, run="third")
    lines = (tmp_path / "privacy" / "Bern.jsonl").read_text().splitlines()
    assert [json.loads(line)["run"] for line in lines] == ["first", "second"], "what is refused is not entered"
    assert ledger(tmp_path).spent() == {1.0: 2}
    PrivacyLedger(tmp_path, "Basel", FLOOR).enter(ONE, run="first")  # another site has a budget of its own


def test_each_release_is_priced_at_its_own_noise(tmp_path):
    own = ledger(tmp_path)
    own.enter(ONE, run="a")
    own.enter(ONE, run="a")
    strong = DifferentialPrivacy(noise_multiplier=100.0)
    own.enter(strong, run="a")  # three releases at 100 would be 0.1: what was sent at 1 stays as dear as it was
    assert own.spent() == {1.0: 2, 100.0: 1}
    both = epsilon_of({1.0: 2, 100.0: 1}, 1e-5)
    assert epsilon(1.0, 2, 1e-5) < both < epsilon(1.0, 2, 1e-5) + 0.05
    with pytest.raises(MessageRefused, match="privacy budget"):
        own.enter(ONE, run="a")


def test_a_large_delta_of_the_plan_makes_nothing_cheaper(tmp_path):
    loose = DifferentialPrivacy(noise_multiplier=1.0, delta=0.1)
    assert epsilon(1.0, 3, 0.1) < 8.0
    own = ledger(tmp_path)
    own.enter(loose, run="a")
    own.enter(loose, run="a")
    with pytest.raises(MessageRefused, match="privacy budget"):
        own.enter(loose, run="a")


def test_a_line_that_was_cut_off_counts_with_the_least_noise_of_the_others(tmp_path):
    own = ledger(tmp_path)
    own.enter(DifferentialPrivacy(noise_multiplier=4.0), run="a")
    own.enter(DifferentialPrivacy(noise_multiplier=2.0), run="a")
    with own.path.open("a") as stream:
        stream.write('{"time": "2026')
    assert own.spent() == Counter({2.0: 2, 4.0: 1})


def test_what_was_sent_before_a_site_asks_for_an_epsilon_counts(tmp_path):
    ledger(tmp_path, PrivacyFloor()).enter(ONE, run="a")
    assert ledger(tmp_path).spent() == Counter({ONE.noise_multiplier: 1})


def test_the_ledger_is_its_owner_s_to_read(tmp_path):
    own = ledger(tmp_path)
    own.enter(ONE, run="a")
    assert own.path.stat().st_mode & 0o777 == 0o600
