"""The privacy ledger: what a site has spent of its own budget, over all its runs."""

from __future__ import annotations

import json
import threading
from collections import Counter
from datetime import datetime, timezone
from pathlib import Path

from samfed_monai.core.errors import Problem
from samfed_monai.core.io import append_line, as_file_name, locked
from samfed_monai.privacy.audit import count_noise
from samfed_monai.privacy.settings import DifferentialPrivacy, PrivacyFloor, epsilon_of
from samfed_monai.protocol.message import MessageRefused


class PrivacyLedger:
    """Counts a site's messages with noise over all of its runs, each at the noise that it was sent with.

    The server names runs and sends plans: a count that began anew with each name, or priced what was sent before at
    the present plan's noise, would let it spend a site's ``epsilon`` as often as it likes. Renyi divergences of the
    releases are summed instead (Mironov, CSF 2017, proposition 1). A release is entered before its message leaves, one
    process at a time; one that is entered and then lost counts.

    Args:
        folder: the site's ``cache_dir``; the ledger is ``privacy/<site>.jsonl`` below it, and deleting that file
            forgets what was spent.
        site: whose it is.
        floor: the site's own; without an ``epsilon`` all fits.
    """

    def __init__(self, folder: str | Path, site: str, floor: PrivacyFloor) -> None:
        self.path = Path(folder) / "privacy" / f"{as_file_name(site)}.jsonl"
        self.floor = floor
        self._lock = threading.Lock()

    def enter(self, settings: DifferentialPrivacy, *, run: str) -> None:
        """Enters one release of ``settings``'s noise, if it fits; also where nothing is asked yet of later runs.

        Args:
            settings: the noise of the release.
            run: what the entry says it was for; it decides nothing.

        Raises:
            MessageRefused: more than the floor's ``epsilon`` would be spent; nothing is entered.
            OSError: the ledger could not be read or written.
        """
        most, delta = self.floor.epsilon, min(settings.delta, DifferentialPrivacy.delta)
        with self._lock, locked(self.path):
            spent = 0.0 if most is None else epsilon_of(self.spent() + Counter([settings.noise_multiplier]), delta)
            if most is not None and spent > most:
                found = f"epsilon {spent:.3g} over all of its runs after one more message"
                expected = f"at most {most:g}, as this site's file says"
                raise MessageRefused([Problem("privacy budget", found=found, expected=expected)])
            now = datetime.now(timezone.utc).isoformat(timespec="seconds")
            entry = {"time": now, "run": run, "noise_multiplier": settings.noise_multiplier}
            append_line(self.path, json.dumps(entry, ensure_ascii=False, allow_nan=False))

    def spent(self) -> Counter[float]:
        """Noise multiplier to the number of releases with it (:func:`.audit.count_noise`)."""
        return count_noise(self.path, lambda entry: entry["noise_multiplier"])
