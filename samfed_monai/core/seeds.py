"""Seeds that depend only on the purpose of the random numbers, never on earlier computations."""

from __future__ import annotations

import hashlib


def derive_seed(seed: int, *parts: str | int) -> int:
    """A 31-bit seed that depends only on its arguments.

    Args:
        seed: the run's seed.
        parts: the purpose of the random numbers, for instance the site's name and the round.

    Example::

        derive_seed(0, "site-1", 3) == derive_seed(0, "site-1", 3)  # whatever ran before
    """
    text = "\x1f".join(str(part) for part in (seed, *parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") & 0x7FFFFFFF
