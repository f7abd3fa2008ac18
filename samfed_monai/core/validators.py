"""Checks of arguments, a line for each, that are refused together."""

from __future__ import annotations

import math
from collections.abc import Iterable
from enum import Enum
from functools import partial
from numbers import Real
from typing import Any

from samfed_monai.core.errors import Problem, Refused, did_you_mean


def require(*found: Iterable[Problem]) -> None:
    """Refuses all problems that checks found.

    Raises:
        Refused: there is one.

    Example::

        require(
            in_range("sharing#mu", mu, least=0),
            one_of("sharing#schedule", schedule, Annealing),
        )
    """
    problems = [problem for each in found for problem in each]
    if problems:
        raise Refused(problems)


def in_range(
    where: str,
    value: Any,
    what: str = "a number",
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    or_null: bool = False,
    hint: str = "",
) -> list[Problem]:
    """A problem unless ``value`` is a finite number in the range; ``bool`` is no number.

    Args:
        where: the argument's place in the bundle.
        value: what was found there.
        what: what the number means, for the message.
        least, above: the lower bound, included or not.
        most, below: the upper bound, included or not.
        or_null: whether ``None`` is accepted.
        hint: how to fix it.
    """
    sound = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    return _unless(sound, where, value, what, least, above, most, below, or_null, hint)


def whole(
    where: str,
    value: Any,
    what: str = "a whole number",
    *,
    least: int | None = None,
    most: int | None = None,
    or_null: bool = False,
    hint: str = "",
) -> list[Problem]:
    """A problem unless ``value`` is an ``int`` in the range; the arguments are those of :func:`in_range`."""
    return _unless(type(value) is int, where, value, what, least, None, most, None, or_null, hint)


FRACTION = partial(in_range, least=0, most=1)
BELOW_1 = partial(in_range, least=0, below=1)
NOT_NEGATIVE = partial(in_range, least=0)
POSITIVE = partial(in_range, above=0)
COUNT = partial(whole, least=1)


def one_of(where: str, value: Any, known: Iterable[Any], hint: str = "") -> list[Problem]:
    """A problem unless ``value`` is one of ``known``: words, an ``Enum`` or a registry.

    Args:
        where: the argument's place in the bundle.
        value: what was found there.
        known: what is accepted.
        hint: how to fix it where no known word is close.
    """
    words = [each.value if isinstance(each, Enum) else each for each in known]
    if value in words:
        return []
    return [Problem(where, repr(value), f"one of {words}", did_you_mean(str(value), map(str, words)) or hint)]


def switch(where: str, value: Any) -> list[Problem]:
    """A problem unless ``value`` is ``True`` or ``False``."""
    return [] if isinstance(value, bool) else [Problem(where, repr(value), "true or false")]


def _unless(
    sound: bool,
    where: str,
    value: Any,
    what: str,
    least: float | None,
    above: float | None,
    most: float | None,
    below: float | None,
    or_null: bool,
    hint: str,
) -> list[Problem]:
    if or_null and value is None:
        return []
    fits = (
        sound
        and (least is None or value >= least)
        and (above is None or value > above)
        and (most is None or value <= most)
        and (below is None or value < below)
    )
    if fits:
        return []
    lower = f"[{least:g}" if least is not None else f"({above:g}" if above is not None else ""
    upper = f"{most:g}]" if most is not None else f"{below:g})" if below is not None else ""
    if lower and upper:
        bounds = f" in {lower}, {upper}"
    elif lower:
        bounds = f" {'>=' if least is not None else '>'} {lower[1:]}"
    else:
        bounds = f" {'<=' if most is not None else '<'} {upper[:-1]}" if upper else ""
    return [Problem(where, repr(value), f"{what}{bounds}{', or null' if or_null else ''}", hint)]
