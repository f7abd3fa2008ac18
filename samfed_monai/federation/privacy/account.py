"""What ``results.json`` says about privacy: what was withheld, what noise was added, what that came to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from samfed_monai.federation.privacy.accountant import epsilon
from samfed_monai.federation.privacy.settings import Privacy

#: What the guarantee is about; the words of ``results.json`` and of the report.
UNIT = "all training images of one site, replaced by as many others"


def privacy_account(
    privacy: Privacy, records: Iterable[Mapping[str, Any]], withheld: Mapping[tuple[str, str], str]
) -> dict[str, Any]:
    """``results.json -> privacy``.

    Args:
        privacy: the run's settings.
        records: ``round.json`` of every round; a site's ``releases`` there is its own count, restarts included.
        withheld: (site, split) to the reason why a site sent no scores of the best or the last model.
    """
    account: dict[str, Any] = {
        "least_images": privacy.least_images,
        "withheld": [
            {"site": site, "split": split, "reason": reason} for (site, split), reason in sorted(withheld.items())
        ],
        "differential_privacy": None,
    }
    noise = privacy.differential_privacy
    if noise is None:
        return account
    releases: dict[str, int] = {}
    for record in records:
        for site, entry in record["sites"].items():
            releases[site] = max(releases.get(site, 0), int(entry.get("releases") or 0))
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
