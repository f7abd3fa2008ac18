"""Privacy accounting: epsilon of releases with noise, and a site's ledger over all of its runs."""

from __future__ import annotations

import threading
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from functools import lru_cache
from operator import itemgetter
from pathlib import Path
from typing import Any

from samfed_monai.core.io import append_line, as_file_name, locked
from samfed_monai.core.validators import installed, require
from samfed_monai.privacy.audit import json_lines, with_time
from samfed_monai.protocol.message import message_refused

DELTA = 1e-5
"""Default delta of (epsilon, delta); a site's own budget is computed with at most this delta."""
#: Renyi orders to try; those of Opacus are from 1.1 to 63, too few for strong and for weak noise.
_ORDERS = (*(1 + x / 100 for x in range(1, 100)), *(1 + x / 10 for x in range(10, 100)), *range(12, 64), 128, 256, 512)


def epsilon(noise_multiplier: float, releases: int, delta: float) -> float:
    """Returns the epsilon of ``releases`` releases with the same noise (:func:`epsilon_of`).

    Args:
        noise_multiplier: standard deviation over sensitivity.
        releases: number of releases; 0 gives 0.
        delta: in (0, 1).
    """
    return epsilon_of({noise_multiplier: releases}, delta)


def epsilon_of(releases: Mapping[float, int], delta: float) -> float:
    """Returns the epsilon of adaptive releases with Gaussian noise, without subsampling.

    Renyi differential privacy (Mironov, CSF 2017): an upper bound, here some 10 % above the exact value of Gaussian
    composition (Balle and Wang, ICML 2018), to which the tests compare it.

    Args:
        releases: number of releases by noise multiplier (standard deviation over sensitivity); none gives 0.
        delta: in (0, 1).

    Raises:
        Refused: Opacus is not installed.
    """
    return _epsilon(tuple(sorted((noise, count) for noise, count in releases.items() if count)), delta)


@lru_cache(maxsize=1024)
def _epsilon(releases: tuple[tuple[float, int], ...], delta: float) -> float:
    if not releases:
        return 0.0
    rdp = accountant()
    spent = sum(rdp.compute_rdp(q=1.0, noise_multiplier=noise, steps=n, orders=_ORDERS) for noise, n in releases)
    with warnings.catch_warnings():  # "optimal order is the largest alpha": still a bound
        warnings.simplefilter("ignore")
        value, _ = rdp.get_privacy_spent(orders=_ORDERS, rdp=spent, delta=delta)
    return float(value)


def accountant() -> Any:
    """Imports Opacus' analysis of Renyi differential privacy.

    Raises:
        Refused: Opacus is not installed.
    """
    where = "federate.json -> privacy#differential_privacy"
    require(installed("opacus", "privacy", where, "no such package", "Opacus, which computes epsilon"))
    with warnings.catch_warnings():  # Opacus warns about torch
        warnings.simplefilter("ignore")
        from opacus.accountants.analysis import rdp
    return rdp


def count_releases(path: Path | None, noise_of: Callable[..., Any] = itemgetter("noise_multiplier")) -> Counter[float]:
    """Returns the number of releases by noise multiplier.

    A line that cannot be read (an interrupted write), or lacks the number, counts as a release with the lowest noise
    of the others.

    Args:
        path: a file of JSON lines (:func:`json_lines`).
        noise_of: returns the noise multiplier of a line's record, by default a ledger's; ``None`` if it is no release.
    """
    counts: Counter[float] = Counter()
    unreadable = 0
    for record in json_lines(path):
        try:
            value = noise_of(record)
            counts += Counter([] if value is None else [float(value)])
        except (AttributeError, KeyError, TypeError, ValueError):
            unreadable += 1
    if unreadable:
        counts[min(counts, default=1.0)] += unreadable
    return counts


class PrivacyLedger:
    """Counts a site's messages with noise over all of its runs, each with the noise that it was sent with.

    The server names runs and sends plans: with a count per run name, or earlier releases counted at the current plan's
    noise, it could spend a site's ``epsilon`` any number of times. Instead, the Renyi divergences of all releases are
    summed (Mironov, CSF 2017, proposition 1). A release is entered before its message leaves, one process at a time; a
    message that is lost after that counts.

    Args:
        folder: the site's ``cache_dir``; the ledger is ``privacy/<site>.jsonl`` in it. Deleting that file resets the
            budget.
        site: the site's name.
        limit: the site's own ``epsilon``; ``None`` sets no limit.
        run: the run that new entries name.
    """

    def __init__(self, folder: str | Path, site: str, limit: float | None, *, run: str = "") -> None:
        self.path = Path(folder) / "privacy" / f"{as_file_name(site)}.jsonl"
        self.limit, self.run = limit, run
        self._lock = threading.Lock()

    def enter(self, noise_multiplier: float, delta: float) -> None:
        """Enters one release if it fits the budget; without a limit as well, as a later run may have one.

        Args:
            noise_multiplier: of the release.
            delta: of its (epsilon, delta); at most :data:`DELTA` counts.

        Raises:
            MessageRefused: the release would exceed the limit; nothing is entered.
            OSError: the ledger could not be read or written.
        """
        limit, delta = self.limit, min(delta, DELTA)
        with self._lock, locked(self.path):
            spent = 0.0 if limit is None else epsilon_of(self.spent() + Counter([noise_multiplier]), delta)
            if limit is not None and spent > limit:
                found = f"epsilon {spent:.3g} over all runs of the site after one more message"
                raise message_refused("privacy budget", found, f"at most {limit:g}, the limit in the site file")
            append_line(self.path, with_time({"run": self.run, "noise_multiplier": noise_multiplier}))

    def spent(self) -> Counter[float]:
        """Returns the number of releases by noise multiplier (:func:`count_releases`)."""
        return count_releases(self.path)

    def of_run(self) -> Counter[float]:
        """Returns the same for this run only; unreadable lines are not counted."""
        entered = [entry for entry in json_lines(self.path) if entry and entry.get("run") == self.run]
        return Counter(float(entry["noise_multiplier"]) for entry in entered)
