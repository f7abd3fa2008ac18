"""What ``federate.json -> privacy`` says, checked; what it amounts to, and what ``results.json`` says of it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import lru_cache
from typing import Any

from samfed_monai.core.errors import Problem, Problems, Refused, did_you_mean
from samfed_monai.data.datalist import LEAST_IMAGES
from samfed_monai.protocol.message import Envelope, Kind, MessageRefused
from samfed_monai.protocol.statistics import StatisticKind, StatisticRule, read_rules

#: Renyi orders that are tried; Opacus' own begin at 1.1 and end at 63, too few for strong and for weak noise.
_ORDERS = (*(1 + x / 100 for x in range(1, 100)), *(1 + x / 10 for x in range(10, 100)), *range(12, 64), 128, 256, 512)


def epsilon(noise_multiplier: float, releases: int, delta: float) -> float:
    """Epsilon of ``releases`` releases with the same noise: :func:`epsilon_of`.

    Args:
        noise_multiplier: standard deviation over sensitivity.
        releases: how many; 0 gives 0.
        delta: in (0, 1).
    """
    return epsilon_of({noise_multiplier: releases}, delta)


def epsilon_of(releases: Mapping[float, int], delta: float) -> float:
    """Epsilon of adaptive releases with Gaussian noise, without subsampling.

    Renyi differential privacy (Mironov, CSF 2017): an upper bound, here some 10 % above the exact value of Gaussian
    composition (Balle and Wang, ICML 2018), which the tests compare it with.

    Args:
        releases: noise multiplier (standard deviation over sensitivity) to how many were made with it; none give 0.
        delta: in (0, 1).

    Raises:
        Refused: Opacus is not installed.
    """
    return _epsilon(tuple(sorted((noise, count) for noise, count in releases.items() if count)), delta)


@lru_cache(maxsize=1024)
def _epsilon(releases: tuple[tuple[float, int], ...], delta: float) -> float:
    if not releases:
        return 0.0
    rdp = _analysis()
    spent = sum(
        rdp.compute_rdp(q=1.0, noise_multiplier=noise, steps=count, orders=_ORDERS) for noise, count in releases
    )
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


#: Numbers that say how long a site worked, not what it saw.
EFFORT = frozenset({"seconds", "iterations", "releases"})
#: Word of an answer whose statistics were withheld; its value is the number of images that they would have needed.
WITHHELD = "withheld"


def withhold_small(message: Envelope, least_images: int) -> Envelope:
    """``message`` without what fewer than ``least_images`` images say.

    Of many images, counts of empty masks that are above 0 and below ``least_images`` stay (three images without a
    lesion are three images), and HD95 where the counts that go leave fewer images than that.
    Scores go, and the count with them; the word ``withheld`` says so, unless there are no images at all. Tensors that
    were learned from so few images are such a statistic too, and cannot be left out of themselves.

    Raises:
        MessageRefused: tensors of fewer than ``least_images`` images.
    """
    if message.n >= least_images:
        return _without_few(message, least_images)
    if message.tensors:
        found, expected = "fewer", f"tensors of at least {least_images} images"
        mend = "join with another site, or agree on another least_images"
        raise MessageRefused([Problem("message -> n", found=found, expected=expected, mend=mend)])
    statistics = message.metrics.keys() - EFFORT
    if message.kind != Kind.METRICS or not (message.n or statistics):
        return message
    kept = {name: value for name, value in message.metrics.items() if name in EFFORT}
    word = {WITHHELD: str(least_images)} if message.n else {}
    return replace(message, n=0, metrics=kept, extra={**message.extra, **word})


def _without_few(message: Envelope, least_images: int) -> Envelope:
    counts = {name: value for name, value in message.metrics.items() if name.startswith("empty_")}
    few = {name for name, value in counts.items() if 0 < value < least_images}
    shown = sum(value for name, value in counts.items() if name not in few)
    if shown and 0 < message.n - shown < least_images:
        few.add("hd95")
    if not few & message.metrics.keys():
        return message
    return replace(message, metrics={name: value for name, value in message.metrics.items() if name not in few})


def withheld_reason(message: Envelope) -> str | None:
    """Why an answer holds no statistics: ``withheld: fewer than 5 images``, ``no images``; ``None`` where it does."""
    least = message.extra.get(WITHHELD)
    if least is not None:
        return f"withheld: fewer than {least} images"
    return None if message.n or message.metrics.keys() - EFFORT else NO_IMAGES


NO_IMAGES = "no images"
"""Why a site without masks has no scores."""


WHERE = "federate.json -> privacy"


@dataclass(frozen=True)
class DifferentialPrivacy:
    """Clipping and Gaussian noise on what a site sends after its local epoch (``docs/privacy.md``: what that gives).

    Args:
        clip: largest L2 norm: of the difference between the weights sent and those received; with soft masks, of the
            difference of each public image's mask (probabilities in [0, 1], one number a pixel).
        noise_multiplier: standard deviation of the noise over the message's sensitivity, which is ``2 * clip`` for
            weights and ``2 * clip * sqrt(number of masks)`` for soft masks.
        delta: of (epsilon, delta), in (0, 1); far below one over the number of patients.
        epsilon: a site sends nothing more once this much would be spent; ``None`` sets no limit.

    Example::

        {"clip": 1.0, "noise_multiplier": 2.0, "delta": 1e-05, "epsilon": null}
    """

    clip: float = 1.0
    noise_multiplier: float = 1.0
    delta: float = 1e-5
    epsilon: float | None = None


@dataclass(frozen=True)
class Privacy:
    """What a run promises its sites.

    Args:
        least_images: statistics of fewer images do not leave a site; 1 withholds nothing.
        differential_privacy: ``None`` adds no noise.
        statistics: kind of image-derived statistic to its rule; ``None`` forbids it, what is not named has defaults.

    Example::

        "privacy": {"least_images": 5, "differential_privacy": null}
    """

    least_images: int = LEAST_IMAGES
    differential_privacy: DifferentialPrivacy | None = None
    statistics: Mapping[StatisticKind, StatisticRule | None] = field(default_factory=dict)

    def rule(self, kind: StatisticKind) -> StatisticRule | None:
        """What holds for a statistic that the method in use sends; ``None`` where it may not leave."""
        rule = self.statistics.get(kind, StatisticRule())
        return rule and replace(rule, least_images=max(rule.least_images, self.least_images))

    @classmethod
    def from_json(cls, content: Any, *, where: str = WHERE) -> Privacy:
        """Reads ``{"least_images", "differential_privacy", "statistics"}``; what is left out has its default.

        Raises:
            Refused: an unknown name or a value out of its range; all of them are listed.
        """
        problems = Problems()
        given = _object(content, cls, where, problems)
        least = given.get("least_images", cls.least_images)
        if type(least) is not int or least < 1:
            problems.add(f"{where} -> least_images", found=repr(least), expected="a whole number >= 1")
        noise = None
        if given.get("differential_privacy") is not None:
            noise = _noise(given["differential_privacy"], f"{where} -> differential_privacy", problems)
        statistics = read_rules(given.get("statistics"), f"{where} -> statistics", problems)
        problems.refuse_if_any()
        return cls(least, noise, statistics)

    def to_json(self) -> dict[str, Any]:
        """What :meth:`from_json` reads."""
        rules = {kind.value: rule and asdict(rule) for kind, rule in self.statistics.items()}
        noise = self.differential_privacy and asdict(self.differential_privacy)
        content = {"least_images": self.least_images, "differential_privacy": noise}
        return {**content, "statistics": rules} if rules else content


@dataclass(frozen=True)
class PrivacyFloor:
    """What a site asks of every run, whatever the run's plan promises: the stricter of the two counts.

    Args:
        least_images: as in :class:`Privacy`; 1 leaves it to the plan.
        epsilon: as in :class:`DifferentialPrivacy`, counted at a ``delta`` of at most that class's default; ``None``
            leaves it to the plan.
        statistics: kinds of image-derived statistics that may leave; ``None`` leaves it to the plan.
    """

    least_images: int = 1
    epsilon: float | None = None
    statistics: tuple[StatisticKind, ...] | None = None

    def under(self, privacy: Privacy) -> Privacy:
        """The plan's settings, made stricter where the site's are.

        Raises:
            MessageRefused: the site has an ``epsilon``, and the plan adds no noise.
        """
        least, noise = max(self.least_images, privacy.least_images), privacy.differential_privacy
        if self.epsilon is not None and noise is None:
            expected, mend = "noise: this site's file has an epsilon", "set it in federate.json, or leave this site out"
            where = f"{WHERE} -> differential_privacy"
            raise MessageRefused([Problem(where, found="none", expected=expected, mend=mend)])
        if self.epsilon is not None and noise is not None:
            epsilon = min(self.epsilon, noise.epsilon or math.inf)
            noise = replace(noise, epsilon=epsilon, delta=min(noise.delta, DifferentialPrivacy.delta))
        statistics = dict(privacy.statistics)
        if self.statistics is not None:
            statistics |= {kind: None for kind in StatisticKind if kind not in self.statistics}
        return Privacy(least, noise, statistics)


def _noise(content: Any, where: str, problems: Problems) -> DifferentialPrivacy:
    given = _object(content, DifferentialPrivacy, where, problems)
    found = {field.name: given.get(field.name, field.default) for field in fields(DifferentialPrivacy)}
    for name, value in found.items():
        if name == "epsilon" and value is None:
            continue
        most = 1.0 if name == "delta" else math.inf
        if type(value) not in (int, float) or not 0 < value < most:
            expected = "a number between 0 and 1" if name == "delta" else "a positive number"
            problems.add(f"{where} -> {name}", found=repr(value), expected=expected)
    return DifferentialPrivacy(**found)


def _object(content: Any, kind: Any, where: str, problems: Problems) -> Mapping[str, Any]:
    if content is None:
        return {}
    if not isinstance(content, Mapping):
        problems.add(where, found=type(content).__name__, expected="an object")
        return {}
    known = [field.name for field in fields(kind)]
    for name in content:
        if name not in known:
            expected = f"one of {', '.join(known)}"
            problems.add(where, found=repr(name), expected=expected, mend=did_you_mean(str(name), known))
    return content


#: What the guarantee is about; the words of ``results.json`` and of the report.
UNIT = "all training images of one site, replaced by as many others"


def privacy_account(
    privacy: Privacy,
    records: Iterable[Mapping[str, Any]],
    withheld: Mapping[tuple[str, str], str],
    statistic: StatisticKind | None = None,
) -> dict[str, Any]:
    """``results.json -> privacy``.

    Args:
        privacy: the run's settings.
        records: ``round.json`` of every round; a site's ``releases`` there is its own count, restarts included.
        withheld: (site, split) to the reason why a site sent no scores of the best or the last model.
        statistic: the image-derived statistic that sites sent; ``None`` is none.
    """
    account: dict[str, Any] = {
        "least_images": privacy.least_images,
        "withheld": [
            {"site": site, "split": split, "reason": reason} for (site, split), reason in sorted(withheld.items())
        ],
        "differential_privacy": None,
    }
    noise = privacy.differential_privacy
    rule = privacy.rule(statistic) if statistic is not None else None
    releases: dict[str, int] = {}
    for record in records:
        for site, entry in record["sites"].items():
            releases[site] = max(releases.get(site, 0), int(entry.get("releases") or 0))
    if statistic is not None and rule is not None:
        multiplier, delta = rule.noise_multiplier, DifferentialPrivacy.delta
        account["statistics"] = {
            "kind": statistic.value,
            **asdict(rule),
            "delta": delta if multiplier else None,
            "releases": dict(sorted(releases.items())) if multiplier else None,
            "epsilon": {s: epsilon(multiplier, count, delta) for s, count in sorted(releases.items())}
            if multiplier
            else None,
        }
    if noise is None:
        return account
    spent = {site: epsilon(noise.noise_multiplier, count, noise.delta) for site, count in sorted(releases.items())}
    account["differential_privacy"] = {
        "unit": UNIT,
        "clip": noise.clip,
        "noise_multiplier": noise.noise_multiplier,
        "delta": noise.delta,
        "epsilon_per_round": epsilon(noise.noise_multiplier, 1, noise.delta),
        "releases": dict(sorted(releases.items())),
        "epsilon": spent,
        "epsilon_total": max(spent.values(), default=0.0),
    }
    return account
