"""What a run promises and its strategy cannot keep: each refusal in full, before anything is computed."""

from __future__ import annotations

import sys

import pytest

from samfed_monai.config.variants import Method
from samfed_monai.core.errors import Refused
from samfed_monai.methods.fedavg import FedAvg, PersonalFedAvg
from samfed_monai.privacy.possible import require_possible, statistics_notice, too_few_images
from samfed_monai.privacy.settings import (
    CentralPrivacy,
    DifferentialPrivacy,
    Privacy,
    SecureAggregation,
)
from samfed_monai.protocol import Exchange, Kind
from samfed_monai.protocol.guard import UpdateGuard
from samfed_monai.protocol.statistics import StatisticKind, StatisticRule

WHERE = "federate.json -> privacy"


class Sending(FedAvg):
    """Averages weights, beside which sites send spectra."""

    statistic = StatisticKind.SPECTRUM


class ReadsTerms(FedAvg):
    """Averages weights, and reads means of loss terms."""

    exchange = Exchange(means_of_terms=True)


class Prototypes(FedAvg):
    exchange = Exchange(Kind.PROTOTYPES, own_networks=True, alike=False, server_model=False)


class Scores(FedAvg):
    exchange = Exchange(Kind.METRICS, own_networks=True, alike=False, server_model=False)


def told(privacy: Privacy, strategy, **options) -> list[str]:
    with pytest.raises(Refused) as error:
        require_possible(privacy, strategy, **options)
    return [str(problem) for problem in error.value.problems]


def test_what_can_be_kept_passes():
    require_possible(Privacy(), Sending())
    require_possible(Privacy(), FedAvg(), rounds=3, sites=1)


def test_a_method_of_one_site_alone_is_no_federation():
    assert told(Privacy(), FedAvg(), method=Method("mine", leaves_site=())) == [
        "variant: expected a method of a federation; of this one nothing leaves a site, found 'mine'; "
        "run its train.json at that site (docs/methods.md), or choose another variant"
    ]
    require_possible(Privacy(), FedAvg(), Method("mine", leaves_site=("scores",)))


@pytest.mark.parametrize("strategy", [Sending, Prototypes])
def test_sums_under_masks_take_a_mean(strategy):
    pytest.importorskip("cryptography")
    require_possible(Privacy(secure_aggregation=SecureAggregation()), FedAvg(), None, UpdateGuard(), sites=3)
    assert told(Privacy(secure_aggregation=SecureAggregation()), strategy()) == [
        f"{WHERE} -> secure_aggregation: expected a strategy that takes the mean of the sites' weights, as FedAvg "
        f"does, found {strategy.__name__}, which has to see each site's answer; choose a variant that averages, such "
        "as samfed, or secure_aggregation: null"
    ]


def test_sums_under_masks_take_a_guard_that_sees_no_update():
    guard = UpdateGuard(action="skip", largest_share=0.5)
    expected = "expected nothing that looks at each update, as the server sees their sum alone"
    assert told(Privacy(secure_aggregation=SecureAggregation()), FedAvg(), guard=guard) == [
        f"{WHERE} -> secure_aggregation: {expected}, found job#update_guard#largest_share; "
        "largest_share: null, or secure_aggregation: null",
        f"{WHERE} -> secure_aggregation: {expected}, found job#update_guard#action 'skip'; "
        "'clip', which then shortens the step of the mean, or secure_aggregation: null",
    ]


def test_a_threshold_that_nobody_reaches_is_told_beside_the_rest():
    found = told(Privacy(secure_aggregation=SecureAggregation(5)), Prototypes(), sites=4)
    assert found[0] == (
        f"{WHERE} -> secure_aggregation -> threshold: expected from 3 to 4, of 4 sites, found 5; null takes the least"
    )
    assert len(found) == 2
    [two] = told(Privacy(secure_aggregation=SecureAggregation(5)), FedAvg(), sites=2)
    assert two.endswith("expected from 2 to 2, of 2 sites, found 5; null takes the least")
    assert told(Privacy(secure_aggregation=SecureAggregation()), FedAvg(), sites=1) == [
        f"{WHERE} -> secure_aggregation -> threshold: expected from 2 to 1, of 1 sites, found 2; "
        "at least two sites; alone none is hidden in a sum"
    ]


def test_a_budget_that_the_rounds_would_spend_is_told_beside_the_rest():
    pytest.importorskip("opacus", reason="the accountant is an extra")
    # one release of noise 1 at delta 1e-5 is 4.7, two are 7.1
    privacy = Privacy(central_differential_privacy=CentralPrivacy(epsilon=5.0))
    require_possible(privacy, FedAvg(), rounds=1)
    require_possible(privacy, FedAvg())
    budget, mean = told(privacy, Prototypes(), rounds=2)
    assert budget.startswith(f"{WHERE} -> central_differential_privacy -> epsilon: expected at most 5, found 7.")
    assert mean.startswith(f"{WHERE} -> central_differential_privacy: expected a strategy that takes the mean")


def test_noise_at_the_server_takes_a_mean():
    assert told(Privacy(central_differential_privacy=CentralPrivacy()), Prototypes()) == [
        f"{WHERE} -> central_differential_privacy: expected a strategy that takes the mean of the sites' weights, as "
        "FedAvg does, found Prototypes, which has to see each site's answer; choose a variant that averages, such as "
        "samfed, or central_differential_privacy: null"
    ]


@pytest.mark.parametrize(
    ("strategy", "problem"),
    [
        (
            Sending,
            "expected weights alone, found weights with noise, and amplitude-spectrum windows beside them; "
            "choose a variant that sends no statistic of images, or differential_privacy: null",
        ),
        (
            ReadsTerms,
            "expected weights alone, found weights with noise, and means of loss terms beside them; choose a variant "
            "that weighs sites by their images, such as samfed, or differential_privacy: null",
        ),
        (
            PersonalFedAvg,
            "expected weights of one network, or predictions, found weights of networks that sites keep; "
            "choose a variant that exchanges those, or differential_privacy: null",
        ),
        (
            Prototypes,
            "expected weights of one network, or predictions, found an exchange of prototypes; "
            "choose a variant that exchanges those, or differential_privacy: null",
        ),
        (
            Scores,
            "expected weights of one network, or predictions, found an exchange of none; "
            "choose a variant that exchanges those, or differential_privacy: null",
        ),
    ],
)
def test_noise_at_sites_takes_what_it_is_made_for(strategy, problem):
    pytest.importorskip("opacus")
    require_possible(Privacy(differential_privacy=DifferentialPrivacy()), FedAvg())
    found = told(Privacy(differential_privacy=DifferentialPrivacy()), strategy())
    assert found == [f"{WHERE} -> differential_privacy: {problem}"]


def test_noise_on_a_statistic_takes_an_accountant(monkeypatch):
    monkeypatch.setitem(sys.modules, "opacus.accountants.analysis", None)
    require_possible(Privacy(), Sending())
    rules = {StatisticKind.SPECTRUM: StatisticRule(clip=1.0, noise_multiplier=0.5)}
    assert told(Privacy(statistics=rules), Sending()) == [
        f"{WHERE} -> differential_privacy: expected its accountant, found no Opacus; "
        "pip install 'samfed-monai[privacy]'"
    ]


def test_what_leaves_of_images_is_said_before_a_run():
    assert statistics_notice(Privacy(), FedAvg(), "samfed") is None
    rules = {StatisticKind.SPECTRUM: StatisticRule(clip=2.0, noise_multiplier=0.5, least_images=9)}
    assert statistics_notice(Privacy(statistics=rules), Sending(), "elcfs") == (
        "elcfs: every site sends amplitude-spectrum windows of its images, each of at least 9 images, clipped to a "
        "norm of 2, noise multiplier 0.5 (privacy -> statistics -> spectrum; docs/privacy.md says what that reveals of "
        "them)"
    )
    assert statistics_notice(Privacy(statistics={StatisticKind.SPECTRUM: None}), Sending(), "elcfs") is None


def test_a_site_with_too_few_images_is_told_so_before_round_0():
    def problems(images: int, strategy, **options) -> list[str]:
        return [str(problem) for problem in too_few_images(images, Privacy(**options), strategy)]

    hint = "found fewer; join with another site, or agree on another least_images"
    assert problems(5, FedAvg()) == problems(1, Scores()) == problems(5, Sending()) == []
    assert problems(4, FedAvg()) == [
        f"images: expected at least 5 images to train on, as privacy -> least_images says, {hint}"
    ]
    rules = {StatisticKind.SPECTRUM: StatisticRule(least_images=9)}
    assert problems(8, FedAvg(), statistics=rules) == problems(9, Sending(), statistics=rules) == []
    assert problems(8, Sending(), statistics=rules) == [
        "images: expected at least 9 images to train on, as privacy -> statistics -> spectrum -> least_images says, "
        f"{hint}"
    ]
    assert problems(8, Sending(), statistics=rules, least_images=10)[0].startswith(
        "images: expected at least 10 images to train on, as privacy -> least_images says"
    )
