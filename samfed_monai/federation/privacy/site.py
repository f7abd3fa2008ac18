"""The filter of one site of a run, from what the run's plan promises and what its client may send."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from samfed_monai.core.errors import Problem, Refused
from samfed_monai.federation.privacy.accountant import require_accountant
from samfed_monai.federation.privacy.allowed import allowed_of
from samfed_monai.federation.privacy.release import Release
from samfed_monai.federation.privacy.settings import WHERE, Privacy

if TYPE_CHECKING:
    from samfed_monai.federation.strategies.base import Strategy

#: What noise can be added to, in the words of ``results.json -> exchange``.
NOISY_EXCHANGES = ("weights", "predictions")


def site_release(site: str, client: Callable[[], Any], privacy: Privacy, run_folder: str | Path) -> Release:
    """What every answer of a :class:`SiteNode` passes.

    Args:
        site: the site's name.
        client: gives the MONAI FL client whose network and sharing say what may leave.
        privacy: the plan's, under the site's own floor (:meth:`PrivacyFloor.under`).
        run_folder: the run's folder at the site; the audit file is ``sites/<site>/audit.jsonl`` below it.
    """
    folder = Path(run_folder) / "sites" / quote(site, safe=" ")
    return Release(site, allowed=lambda: allowed_of(client()), privacy=privacy, folder=folder)


def require_possible(privacy: Privacy, strategy: Strategy) -> None:
    """Refuses noise that cannot be added, or accounted for, before anything is computed.

    Raises:
        Refused: differential privacy with an exchange that it is not made for, or without Opacus.
    """
    if privacy.differential_privacy is None:
        return
    unlike = strategy.exchange_name == "weights" and strategy.personal
    if strategy.exchange_name not in NOISY_EXCHANGES or unlike:
        found = "weights of networks that sites keep" if unlike else f"an exchange of {strategy.exchange_name}"
        expected = "weights of one network, or predictions"
        mend = "choose a variant that exchanges those, or differential_privacy: null"
        raise Refused([Problem(f"{WHERE} -> differential_privacy", found=found, expected=expected, mend=mend)])
    require_accountant()


def too_few_images(images: int, privacy: Privacy, strategy: Strategy) -> list[Problem]:
    """What keeps a site from taking part before round 0: its messages would be refused in every round.

    Args:
        images: images that the site trains on.
        privacy: the run's settings.
        strategy: says whether anything but scores leaves a site.
    """
    if images >= privacy.least_images or strategy.exchange_name == "none":
        return []
    expected = f"at least {privacy.least_images} images to train on, as privacy -> least_images says"
    mend = "join with another site, or agree on another least_images"
    return [Problem("images", found="fewer", expected=expected, mend=mend)]
