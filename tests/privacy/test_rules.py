"""Privacy settings of a run: read, refused together, and checked against its strategy."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest

from samfed_monai.config.method import Method
from samfed_monai.core.errors import Refused
from samfed_monai.methods.fedavg import FedAvg, PersonalFedAvg
from samfed_monai.privacy.rules import (
    CentralPrivacy,
    DifferentialPrivacy,
    Privacy,
    PrivacyFloor,
    SecureAggregation,
    notes_on_statistics,
    require_possible,
    stored_settings,
    too_few_images,
)
from samfed_monai.protocol import Exchange, Kind, MessageRefused
from samfed_monai.protocol.guard import UpdateGuard
from samfed_monai.protocol.statistics import StatisticKind, StatisticRule

WHERE = "federate.json -> privacy"
LOCAL, CENTRAL, SECURE = "differential_privacy", "central_differential_privacy", "secure_aggregation"


@pytest.mark.parametrize(
    ("content", "privacy"),
    [
        (None, Privacy(least_images=5, differential_privacy=None)),
        ({}, Privacy()),
        (
            {"least_images": 1, LOCAL: {"clip": 2}},
            Privacy(1, DifferentialPrivacy(clip=2, noise_multiplier=1.0, delta=1e-5, epsilon=None)),
        ),
        ({SECURE: {}}, Privacy(secure_aggregation=SecureAggregation(None, 32))),
        ({SECURE: {"threshold": 2, "fraction_bits": 8}}, Privacy(secure_aggregation=SecureAggregation(2, 8))),
        ({SECURE: {"fraction_bits": 40}}, Privacy(secure_aggregation=SecureAggregation(None, 40))),
        (
            {CENTRAL: {"count_noise": 0.51, "epsilon": 3}},
            Privacy(central_differential_privacy=CentralPrivacy(1.0, 1.0, 1e-5, 3, 0.5, 0.2, 0.51)),
        ),
        # nothing is spent on a quantile that is not followed
        (
            {CENTRAL: {"count_noise": 0.1, "quantile": None}},
            Privacy(central_differential_privacy=CentralPrivacy(count_noise=0.1, quantile=None)),
        ),
        (
            {"statistics": {"spectrum": {"clip": 2, "noise_multiplier": 0.5}, "graph": None, "prototypes": {}}},
            Privacy(
                statistics={
                    StatisticKind.SPECTRUM: StatisticRule(clip=2, noise_multiplier=0.5, least_images=1),
                    StatisticKind.GRAPH: None,
                    StatisticKind.PROTOTYPES: StatisticRule(),
                }
            ),
        ),
        ({"statistics": dict.fromkeys(StatisticKind)}, Privacy(statistics=dict.fromkeys(StatisticKind))),
    ],
)
def test_settings_are_read_with_defaults(content, privacy):
    assert Privacy.from_json(content) == privacy


@pytest.mark.parametrize(
    ("content", "ids"),
    [
        ("strict", [""]),
        (
            {
                "least_images": 2.0,
                LOCAL: {"clip": -1, "noise_multiplier": True, "delta": 1.0, "epsilon": 0},
                SECURE: {"threshold": 1, "fraction_bits": 7},
                "statistics": ["graph"],
            },
            [
                "#least_images",
                *(f"#{LOCAL}#{name}" for name in ("clip", "noise_multiplier", "delta", "epsilon")),
                *(f"#{SECURE}#{name}" for name in ("threshold", "fraction_bits")),
                "#statistics",
            ],
        ),
        (
            {"least_images": 0, CENTRAL: {"clip_rate": 0, "delta": "a", "quantile": 1.0, "count_noise": 0}},
            ["#least_images", *(f"#{CENTRAL}#{name}" for name in ("clip_rate", "delta", "quantile", "count_noise"))],
        ),
        (
            {LOCAL: {"clip": None}, SECURE: {"threshold": True, "fraction_bits": 41}},
            [f"#{LOCAL}#clip", f"#{SECURE}#threshold", f"#{SECURE}#fraction_bits"],
        ),
        ({SECURE: 3, "statistics": {"graph": False}}, [f"#{SECURE}", "#statistics#graph"]),
        (
            {"least_image": 5, "statistics": {"spectra": {}, "spectrum": {"clip": 0, "least_images": 0}}},
            [
                "#least_image",
                *(f"#statistics#{name}" for name in ("spectra", "spectrum#clip", "spectrum#least_images")),
            ],
        ),
        (
            {"statistics": {"features": {"clip": 1.0, "noise_multiplier": -1}}},
            ["#statistics#features#noise_multiplier"],
        ),
    ],
)
def test_invalid_settings_are_refused_together(content, ids):
    with pytest.raises(Refused) as error:
        Privacy.from_json(content)
    assert sorted(problem.where for problem in error.value.problems) == sorted(f"{WHERE}{id_}" for id_ in ids)


@pytest.mark.parametrize(
    ("content", "problems"),
    [
        (
            {CENTRAL: {"noise_multiplier": 2.0, "count_noise": 1.0}},
            [
                f"#{CENTRAL}#count_noise: expected more than half of noise_multiplier (1), found 1.0; null chooses a "
                "value; with less, the quantile alone would use more than the whole epsilon"
            ],
        ),
        (
            {"statistics": {"graph": {"noise_multiplier": 1.0}, "prototypes": {"clip": 1.0, "noise_multiplier": 1.0}}},
            [
                "#statistics#graph#noise_multiplier: expected a clip, which sets the scale of the noise, "
                "found 1 without a clip; set clip, or set noise_multiplier to 0",
                "#statistics#prototypes#noise_multiplier: expected 0, as prototypes are sent with pixel counts, which "
                "noise would distort, found 1; set noise_multiplier to 0",
            ],
        ),
        (
            {SECURE: {}, CENTRAL: {}, LOCAL: {}},
            [
                ": expected only one of them, found secure_aggregation and central_differential_privacy; the server "
                "cannot clip updates that it does not see: use differential_privacy, at the sites",
                ": expected only one of them, found noise at the sites and at the server; set "
                "central_differential_privacy to null if the server is not trusted, else differential_privacy",
            ],
        ),
    ],
)
def test_conflicting_settings_are_refused(content, problems):
    with pytest.raises(Refused) as error:
        Privacy.from_json(content)
    assert [str(problem) for problem in error.value.problems] == [f"{WHERE}{problem}" for problem in problems]


def test_run_without_newer_settings_can_resume():
    old = {"least_images": 5, "differential_privacy": None}
    assert stored_settings({**old, "central_differential_privacy": None}) == old
    assert stored_settings({**old, "central_differential_privacy": {}}) != old


NOISE = DifferentialPrivacy(noise_multiplier=2.0, delta=1e-3, epsilon=8.0)
UNBOUND = replace(NOISE, epsilon=None, delta=1e-6)


@pytest.mark.parametrize(
    ("floor", "plan", "expected"),
    [
        (PrivacyFloor(), Privacy(5, NOISE), Privacy(5, NOISE)),
        (PrivacyFloor(3), Privacy(5), Privacy(5)),
        (PrivacyFloor(8), Privacy(1), Privacy(8)),
        (PrivacyFloor(8, 2.0), Privacy(1, NOISE), Privacy(8, replace(NOISE, epsilon=2.0, delta=1e-5))),
        (PrivacyFloor(1, 9.0), Privacy(1, NOISE), Privacy(1, replace(NOISE, epsilon=8.0, delta=1e-5))),
        (PrivacyFloor(1, 9.0), Privacy(1, UNBOUND), Privacy(1, replace(UNBOUND, epsilon=9.0))),
    ],
)
def test_stricter_of_plan_and_site_applies(floor, plan, expected):
    assert floor.tighten(plan) == expected
    with pytest.raises(MessageRefused, match=r"differential_privacy: expected noise, as .* found none; set it in"):
        PrivacyFloor(epsilon=2.0).tighten(Privacy())


@pytest.mark.parametrize(("sites", "least"), [(1, 2), (2, 2), (3, 2), (4, 3), (5, 3), (8, 5)])
def test_default_threshold_is_majority(sites, least):
    assert SecureAggregation().threshold_of(sites) == least
    assert SecureAggregation(7).threshold_of(sites) == 7


class Sending(FedAvg):
    """Averages weights, beside which sites send spectra."""

    statistic = StatisticKind.SPECTRUM


class ReadsTerms(FedAvg):
    """Averages weights, and reads means of loss terms."""

    exchange = Exchange(reads_term_means=True)


class Prototypes(FedAvg):
    exchange = Exchange(Kind.PROTOTYPES, own_networks=True, alike=False, server_model=False)


class Scores(FedAvg):
    exchange = Exchange(Kind.METRICS, own_networks=True, alike=False, server_model=False)


NINE = {StatisticKind.SPECTRUM: StatisticRule(least_images=9)}


def refusals(privacy: Privacy, strategy, **options) -> list[str]:
    with pytest.raises(Refused) as error:
        require_possible(privacy, strategy, **options)
    return [str(problem) for problem in error.value.problems]


def test_single_site_method_is_refused():
    assert refusals(Privacy(), FedAvg(), method=Method("mine", leaves_site=())) == [
        "variant: expected a federated method: with this one, a site sends nothing, found 'mine'; "
        "run its train.json at the site (docs/methods.md), or choose another variant"
    ]
    require_possible(Privacy(), FedAvg(), Method("mine", leaves_site=("scores",)))


@pytest.mark.parametrize("strategy", [Sending, Prototypes])
@pytest.mark.parametrize("setting", [{SECURE: SecureAggregation()}, {CENTRAL: CentralPrivacy()}])
def test_secure_sum_and_central_noise_require_mean(setting, strategy):
    require_possible(Privacy(**setting), FedAvg(), None, UpdateGuard(), rounds=3, sites=3)
    [name] = setting
    assert refusals(Privacy(**setting), strategy()) == [
        f"{WHERE}#{name}: expected a strategy that needs only the mean of the sites' weights, such as "
        f"FedAvg, found {strategy.__name__}, which needs each site's reply; choose a variant that averages, such "
        f"as samfed, or set {name} to null"
    ]


def test_secure_sum_and_central_noise_refuse_guards_of_single_updates():
    guard = UpdateGuard(action="skip", largest_share=0.5)
    found = refusals(Privacy(central_differential_privacy=CentralPrivacy()), FedAvg(), guard=guard)
    assert str(found).count("central_differential_privacy: expected no limits of single updates: the noise") == 2
    where = f"{WHERE}#secure_aggregation: expected no check of single updates, as the server sees only their sum"
    assert refusals(Privacy(secure_aggregation=SecureAggregation()), FedAvg(), guard=guard) == [
        f"{where}, found job#update_guard#largest_share; set largest_share or secure_aggregation to null",
        f"{where}, found job#update_guard#action 'skip'; "
        "set it to 'clip', which then shortens the mean's step, or set secure_aggregation to null",
    ]


@pytest.mark.parametrize(
    ("threshold", "sites", "problem"),
    [
        (5, 4, "from 3 to 4 for 4 sites, found 5; null sets the minimum"),
        (5, 2, "from 2 to 2 for 2 sites, found 5; null sets the minimum"),
        (None, 1, "from 2 to 1 for 1 sites, found 2; at least two sites: a sum of one hides nothing"),
    ],
)
def test_unreachable_threshold_is_refused(threshold, sites, problem):
    privacy = Privacy(secure_aggregation=SecureAggregation(threshold))
    expected = f"{WHERE}#secure_aggregation#threshold: expected {problem}"
    assert refusals(privacy, FedAvg(), sites=sites) == refusals(privacy, Prototypes(), sites=sites)[:-1] == [expected]


def test_exceeded_budget_is_refused_with_sufficient_multiplier():
    # one release of noise 1 at delta 1e-5 is 4.7, two are 7.1
    privacy = Privacy(central_differential_privacy=CentralPrivacy(epsilon=5.0))
    require_possible(privacy, FedAvg(), rounds=1)
    require_possible(privacy, FedAvg())
    budget, mean = refusals(privacy, Prototypes(), rounds=2)
    assert budget.startswith(f"{WHERE}#central_differential_privacy#epsilon: expected at most 5, found 7.")
    enough = float(budget.partition(" after 2 rounds; set noise_multiplier to ")[2].partition(",")[0])
    large = CentralPrivacy(noise_multiplier=enough * 1.01, epsilon=5.0)
    require_possible(Privacy(central_differential_privacy=large), FedAvg(), rounds=2)
    assert mean.startswith(f"{WHERE}#central_differential_privacy: expected a strategy that needs only the mean")
    (budget,) = refusals(Privacy(differential_privacy=DifferentialPrivacy(epsilon=5.0)), FedAvg(), rounds=2)
    assert budget.startswith(f"{WHERE}#differential_privacy#epsilon: expected at most 5, found 7.")


NETWORKS = "expected weights of one network, or predictions, found {}; choose a variant that exchanges these"


@pytest.mark.parametrize(
    ("strategy", "problem"),
    [
        (
            Sending,
            "expected only weights, found weights with noise, but amplitude-spectrum windows without; "
            "choose a variant that sends no image statistics",
        ),
        (
            ReadsTerms,
            "expected only weights, found weights with noise, but means of loss terms without; choose a variant "
            "that weights sites by their number of images, such as samfed",
        ),
        (PersonalFedAvg, NETWORKS.format("weights of networks that differ between sites")),
        (Prototypes, NETWORKS.format("an exchange of prototypes")),
        (Scores, NETWORKS.format("an exchange of none")),
    ],
)
def test_site_noise_refuses_unsupported_exchanges(strategy, problem):
    privacy = Privacy(differential_privacy=DifferentialPrivacy())
    require_possible(privacy, FedAvg())
    assert refusals(privacy, strategy()) == [
        f"{WHERE}#differential_privacy: {problem}, or set differential_privacy to null"
    ]


def test_statistic_noise_requires_accountant(monkeypatch):
    monkeypatch.setitem(sys.modules, "opacus", None)
    require_possible(Privacy(), Sending())
    rules = {StatisticKind.SPECTRUM: StatisticRule(clip=1.0, noise_multiplier=0.5)}
    assert refusals(Privacy(statistics=rules), Sending()) == [
        f"{WHERE}#differential_privacy: expected Opacus, which computes epsilon, found no such package; "
        "pip install 'samfed-monai[privacy]'"
    ]


def test_released_statistics_are_announced():
    assert notes_on_statistics(Privacy(), FedAvg(), "samfed") == []
    assert notes_on_statistics(Privacy(statistics={StatisticKind.SPECTRUM: None}), Sending(), "elcfs") == []
    rules = {StatisticKind.SPECTRUM: StatisticRule(clip=2.0, noise_multiplier=0.5, least_images=9)}
    assert notes_on_statistics(Privacy(statistics=rules), Sending(), "elcfs") == [
        "elcfs: every site sends amplitude-spectrum windows of its images, each of at least 9 images, clipped to a "
        "norm of 2, noise multiplier 0.5 (privacy#statistics#spectrum; docs/privacy.md says what they reveal)"
    ]


@pytest.mark.parametrize(
    ("strategy", "options", "least", "where"),
    [
        (FedAvg, {}, 5, "least_images"),
        (Sending, {}, 5, "least_images"),
        (FedAvg, {"statistics": NINE}, 5, "least_images"),
        (Sending, {"statistics": NINE}, 9, "statistics#spectrum#least_images"),
        (Sending, {"statistics": NINE, "least_images": 10}, 10, "least_images"),
        (Scores, {}, 0, ""),
    ],
)
def test_too_few_training_images_are_reported(strategy, options, least, where):
    privacy = Privacy(**options)
    assert too_few_images(least, privacy, strategy()) == []
    assert [str(problem) for problem in too_few_images(least - 1, privacy, strategy())] == [
        f"images: expected at least {least} training images (privacy#{where}), "
        "found fewer; merge with another site, or agree on a lower least_images"
    ][: bool(where)]
