"""Statistics of few images stay at the site: a mean over three patients is nearly the patients (fault 59)."""

from __future__ import annotations

from dataclasses import replace

from samfed_monai.core.errors import Problem
from samfed_monai.federation.envelope import Envelope, Kind, MessageRefused

#: Numbers that say how long a site worked, not what it saw.
EFFORT = frozenset({"seconds", "iterations", "releases"})
#: Word of an answer whose statistics were withheld; its value is the number of images that they would have needed.
WITHHELD = "withheld"


def withhold_small(message: Envelope, least_images: int) -> Envelope:
    """``message`` without what fewer than ``least_images`` images say.

    Scores go, and the count with them; the word ``withheld`` says so, unless there are no images at all. Tensors that
    were learned from so few images are such a statistic too, and cannot be left out of themselves.

    Raises:
        MessageRefused: tensors of fewer than ``least_images`` images.
    """
    if message.n >= least_images:
        return message
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


def withheld_reason(message: Envelope) -> str | None:
    """Why an answer holds no statistics: ``withheld: fewer than 5 images``, ``no images``; ``None`` where it does."""
    least = message.extra.get(WITHHELD)
    if least is not None:
        return f"withheld: fewer than {least} images"
    return None if message.n or message.metrics.keys() - EFFORT else "no images"
