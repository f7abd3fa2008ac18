"""What ``federate.json -> privacy`` says, checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from samfed_monai.core.errors import Problem, Problems, did_you_mean
from samfed_monai.data.datalist import LEAST_IMAGES
from samfed_monai.federation.envelope import MessageRefused

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

    Example::

        "privacy": {"least_images": 5, "differential_privacy": null}
    """

    least_images: int = LEAST_IMAGES
    differential_privacy: DifferentialPrivacy | None = None

    @classmethod
    def from_json(cls, content: Any, *, where: str = WHERE) -> Privacy:
        """Reads ``{"least_images", "differential_privacy"}``; ``None`` and what is left out are the defaults.

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
        problems.refuse_if_any()
        return cls(least, noise)

    def to_json(self) -> dict[str, Any]:
        """What :meth:`from_json` reads."""
        return asdict(self)


@dataclass(frozen=True)
class PrivacyFloor:
    """What a site asks of every run, whatever the run's plan promises: the stricter of the two counts.

    Args:
        least_images: as in :class:`Privacy`; 1 leaves it to the plan.
        epsilon: as in :class:`DifferentialPrivacy`, counted at a ``delta`` of at most that class's default; ``None``
            leaves it to the plan.
    """

    least_images: int = 1
    epsilon: float | None = None

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
        return Privacy(least, noise)


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
