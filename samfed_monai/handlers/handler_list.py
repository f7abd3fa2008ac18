"""From the named parts of a bundle to the one list of handlers that MONAI's trainer takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def in_order(*, parts: Sequence[Any]) -> list[Any]:
    """Flattens handlers and named groups of handlers, in the order given, and passes over what a bundle disabled.

    MONAI drops an inline component with ``_disabled_`` from its dict, but resolves a *reference* to one to ``None``,
    which the trainer could not attach.

    Args:
        parts: handlers, ``None``, and dicts or lists of those.

    Example::

        {"_target_": "samfed_monai.handlers.in_order", "parts": ["@before", "@stream", "@terms", "@after"]}
    """
    found: list[Any] = []
    for part in parts:
        if isinstance(part, Mapping):
            found.extend(in_order(parts=list(part.values())))
        elif isinstance(part, (list, tuple)):
            found.extend(in_order(parts=part))
        elif part is not None:
            found.append(part)
    return found
