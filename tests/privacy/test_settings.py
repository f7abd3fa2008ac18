"""Settings of privacy, and Opacus' bound against the exact value of Gaussian composition."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from scipy.optimize import brentq
from scipy.stats import norm

from samfed_monai.core.errors import Refused
from samfed_monai.federation.evaluation import site_scores
from samfed_monai.metrics.scores import pool
from samfed_monai.privacy import DifferentialPrivacy, Privacy, epsilon, privacy_account
from samfed_monai.privacy.settings import (
    EFFORT,
    CentralPrivacy,
    PrivacyFloor,
    SecureAggregation,
    withhold_small,
)
from samfed_monai.protocol import Kind, Message, MessageRefused


def test_what_is_left_out_is_the_default():
    assert Privacy.from_json(None) == Privacy.from_json({}) == Privacy(least_images=5, differential_privacy=None)
    some = Privacy.from_json({"least_images": 1, "differential_privacy": {"clip": 2}})
    assert some == Privacy(1, DifferentialPrivacy(clip=2, noise_multiplier=1.0, delta=1e-5, epsilon=None))
    assert Privacy.from_json(some.to_json()) == some


def test_every_problem_is_listed_at_once():
    content = {
        "least_image": 5,
        "least_images": 0,
        "differential_privacy": {"clip": -1, "noise_multiplier": True, "delta": 1.0, "epsilon": 0, "seed": 3},
    }
    with pytest.raises(Refused) as error:
        Privacy.from_json(content)
    text = str(error.value)
    assert len(error.value.problems) == 7
    assert "did you mean 'least_images'?" in text
    assert "privacy -> least_images: expected a whole number >= 1, found 0" in text
    assert "differential_privacy: expected one of clip, noise_multiplier, delta, epsilon, found 'seed'" in text
    assert "delta: expected a number between 0 and 1, found 1.0" in text


def test_something_else_than_an_object_is_refused():
    with pytest.raises(Refused, match=r"federate\.json -> privacy: expected an object, found str"):
        Privacy.from_json("strict")
    with pytest.raises(
        Refused, match=r"- federate\.json -> privacy -> statistics: expected an object of kinds, found int"
    ):
        Privacy.from_json({"statistics": 3})


NOISE = DifferentialPrivacy(noise_multiplier=2.0, delta=1e-3, epsilon=8.0)


@pytest.mark.parametrize(
    ("floor", "plan", "expected"),
    [
        (PrivacyFloor(), Privacy(5, NOISE), Privacy(5, NOISE)),
        (PrivacyFloor(3), Privacy(5), Privacy(5)),
        (PrivacyFloor(8), Privacy(1), Privacy(8)),
        (PrivacyFloor(8, 2.0), Privacy(1, NOISE), Privacy(8, replace(NOISE, epsilon=2.0, delta=1e-5))),
        (PrivacyFloor(1, 9.0), Privacy(1, NOISE), Privacy(1, replace(NOISE, epsilon=8.0, delta=1e-5))),
        (PrivacyFloor(1, 9.0), Privacy(1, replace(NOISE, epsilon=None, delta=1e-6)), (9.0, 1e-6)),
    ],
)
def test_of_plan_and_site_the_stricter_counts(floor, plan, expected):
    found = floor.under(plan)
    if isinstance(expected, tuple):
        assert (found.differential_privacy.epsilon, found.differential_privacy.delta) == expected
    else:
        assert found == expected


def test_a_site_with_an_epsilon_takes_no_part_in_a_run_without_noise():
    with pytest.raises(MessageRefused, match=r"differential_privacy: expected noise: .* found none; set it in"):
        PrivacyFloor(epsilon=2.0).under(Privacy())


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
        {
            "sites": {"Basel": {"releases": 4}, "Bern": {"status": "skipped"}}
        },  # and Bern perhaps one in each of two rounds
    ]
    account = privacy_account(Privacy(5, DifferentialPrivacy(noise_multiplier=2.0)), records, {("Bern", "test"): "why"})
    noise = account["differential_privacy"]
    assert account["withheld"] == [{"site": "Bern", "split": "test", "reason": "why"}]
    assert noise["releases"] == {"Basel": 4, "Bern": 3}
    assert noise["epsilon"] == {"Basel": epsilon(2.0, 4, DELTA), "Bern": epsilon(2.0, 3, DELTA)}
    assert noise["epsilon_per_round"] == epsilon(2.0, 1, DELTA)
    assert noise["epsilon_total"] == noise["epsilon"]["Basel"]


def test_without_noise_no_accountant_is_needed():
    assert privacy_account(Privacy(), [], {})["differential_privacy"] is None


def test_a_missing_accountant_is_told_with_the_command(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "opacus.accountants.analysis", None)
    with pytest.raises(Refused, match=r"pip install 'samfed-monai\[privacy\]'"):
        epsilon(1.2345, 1, DELTA)


def scores(n: int = 40, **counts: float) -> Message:
    metrics = {"dice": 0.5, "hd95": 3.0, "iterations": 7, **counts}
    return Message(Kind.METRICS, "Bern", 0, 1, n=n, metrics=metrics)


@pytest.mark.parametrize(
    ("counts", "left"),
    [
        ({"empty_both": 0, "empty_prediction": 4, "empty_label": 5}, {"dice", "hd95", "empty_both", "empty_label"}),
        ({"empty_both": 1, "empty_prediction": 1, "empty_label": 2}, {"dice", "hd95"}),
        ({"empty_both": 5, "empty_prediction": 0}, {"dice", "hd95", "empty_both", "empty_prediction"}),
        ({"empty_both": 30, "empty_label": 5}, {"dice", "hd95", "empty_both", "empty_label"}),  # 5 have neither empty
        ({"empty_both": 30, "empty_label": 6}, {"dice", "empty_both", "empty_label"}),  # 4 have
        ({"empty_both": 30, "empty_label": 9}, {"dice", "empty_both", "empty_label"}),  # one has
        ({"empty_both": 36, "empty_label": 4}, {"dice", "empty_both"}),
        ({}, {"dice", "hd95"}),
    ],
)
def test_fault_59_counts_of_empty_masks_under_the_least_number_are_left_out(counts, left):
    sent = withhold_small(scores(**counts), 5)
    assert sent.n == 40
    assert sent.metrics == {name: value for name, value in scores(**counts).metrics.items() if name in left | EFFORT}
    assert withhold_small(scores(**counts), 1) == scores(**counts), "1 withholds nothing"


def test_fault_59_a_count_that_was_left_out_is_null_and_not_none_of_them():
    found = site_scores(withhold_small(scores(empty_both=3, empty_prediction=0, empty_label=9), 5))
    assert found["empty"] == {"both": None, "prediction": 0, "label": 9}
    nothing = site_scores(withhold_small(scores(n=4, empty_both=1), 5))
    assert nothing["empty"] == {"both": 0, "prediction": 0, "label": 0}, "a site that sent nothing hides no other's"
    other = {"dice": 1.0, "iou": None, "hd95": 1.0, "n": 10, "empty": {"both": 1, "prediction": 1, "label": 1}}
    pooled = pool([found, other], skip_empty=True)
    assert pooled["empty"] == {"both": None, "prediction": 1, "label": 10}
    assert pooled["hd95"] == pytest.approx((3.0 * 31 + 1.0 * 7) / 38), "of 40 nine, of 10 three are known to be empty"
    assert pooled["dice"] == pytest.approx((0.5 * 40 + 1.0 * 10) / 50)


def test_fault_59_scores_of_classes_that_few_images_hold_are_left_out_each():
    classes = {
        **{f"{name}_class_{number}": 0.5 for name in ("dice", "iou", "hd95") for number in range(1, 7)},
        **{"images_class_1": 4, "images_class_2": 5, "images_class_3": 1, "images_class_4": 36, "images_class_5": 0},
        "images_class_6": 39,
    }
    sent = withhold_small(scores(**classes), 5).metrics
    kept = {name for name in sent if "_class_" in name}
    shown = {f"{name}_class_{number}" for name in ("dice", "iou", "hd95") for number in (2, 4, 5, 6)}
    # of 40 images 36 hold class 4, and 39 class 6: that 4, or one, do not is as few as that 4 do
    assert kept == shown | {"images_class_2", "images_class_5"}
    assert {name: sent[name] for name in ("dice", "hd95", "iterations")} == {"dice": 0.5, "hd95": 3.0, "iterations": 7}


SECURE, CENTRAL = "secure_aggregation", "central_differential_privacy"


@pytest.mark.parametrize(
    ("part", "content", "problem"),
    [
        (SECURE, {"threshold": 1}, " -> threshold: expected a whole number >= 2, or null, found 1"),
        (SECURE, {"threshold": True}, " -> threshold: expected a whole number >= 2, or null, found True"),
        (SECURE, {"fraction_bits": 7}, " -> fraction_bits: expected a whole number from 8 to 40, found 7"),
        (SECURE, {"fraction_bits": 41}, " -> fraction_bits: expected a whole number from 8 to 40, found 41"),
        (SECURE, {"fraction_bits": 9.0}, " -> fraction_bits: expected a whole number from 8 to 40, found 9.0"),
        (SECURE, 3, ": expected an object, found int"),
        (
            CENTRAL,
            {"count_noise": 0.5},
            " -> count_noise: expected more than half of noise_multiplier, 0.5, found 0.5; "
            "null takes one that fits; less would spend more than the whole epsilon on the quantile alone",
        ),
        (CENTRAL, {"quantile": 1.0}, " -> quantile: expected a number between 0 and 1, found 1.0"),
        (CENTRAL, {"clip": 0}, " -> clip: expected a positive number, found 0"),
    ],
)
def test_refusals_in_full(part, content, problem):
    with pytest.raises(Refused) as error:
        Privacy.from_json({part: content})
    assert [str(each) for each in error.value.problems] == [f"federate.json -> privacy -> {part}{problem}"]


def test_two_promises_of_which_one_undoes_the_other_are_refused_in_full():
    with pytest.raises(Refused) as error:
        Privacy.from_json({"secure_aggregation": {}, "central_differential_privacy": {}, "differential_privacy": {}})
    assert [str(each) for each in error.value.problems] == [
        "federate.json -> privacy: expected one of the two, found secure_aggregation and central_differential_privacy; "
        "the server cannot clip what it does not see: take differential_privacy, at the sites",
        "federate.json -> privacy: expected one of the two, found noise at the sites and at the server; "
        "leave central_differential_privacy null where the server is not trusted, else differential_privacy",
    ]


def test_settings_of_each_part_are_read():
    assert Privacy.from_json({"secure_aggregation": {}}).secure_aggregation == SecureAggregation(None, 32)
    for bits in (8, 40):
        some = {"secure_aggregation": {"threshold": 2, "fraction_bits": bits}}
        assert Privacy.from_json(some).secure_aggregation == SecureAggregation(2, bits)
    some = Privacy.from_json({"central_differential_privacy": {"count_noise": 0.51, "quantile": None, "epsilon": 3}})
    assert some.central_differential_privacy == CentralPrivacy(count_noise=0.51, quantile=None, epsilon=3)
    without = Privacy.from_json({"central_differential_privacy": {"count_noise": 0.1, "quantile": None}})
    assert without.central_differential_privacy.count_noise == 0.1, (
        "nothing is spent on a quantile that is not followed"
    )
    for each in (some, without, Privacy.from_json({"secure_aggregation": {"threshold": 2}})):
        assert Privacy.from_json(each.to_json()) == each
        assert "statistics" not in each.to_json()


@pytest.mark.parametrize(("sites", "least"), [(1, 2), (2, 2), (3, 2), (4, 3), (5, 3), (8, 5)])
def test_the_least_threshold_is_more_than_half(sites, least):
    assert SecureAggregation().threshold_of(sites) == least
    assert SecureAggregation(7).threshold_of(sites) == 7
