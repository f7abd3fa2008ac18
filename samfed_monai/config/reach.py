"""What of a configuration has any part in a workflow: what can be reached through references, and is not disabled."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from samfed_monai.config.ids import references, walk

DISABLED = "_disabled_"


def reached(content: Mapping[str, Any], roots: Iterable[str]) -> dict[str, Any]:
    """The top-level ids that ``roots`` lead to, with their values; disabled components are ``None`` in them.

    What is left out can have any value without a change in what the roots compute: settings of a term that a variant
    disables, for instance, once nothing else refers to them.

    Args:
        content: a merged, unresolved configuration.
        roots: top-level ids to begin with; one that the configuration lacks is passed over.

    Returns:
        In the order of ``content``. All of it where MONAI's macros (``%``) stand in it, which may copy from anywhere.
    """
    enabled = {name: _enabled(value) for name, value in content.items()}
    found, waiting = set[str](), [name for name in roots if name in enabled]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        texts = [value for _, value in walk(enabled[name]) if isinstance(value, str)]
        if any(text.startswith("%") for text in texts):
            return enabled
        waiting += [first for text in texts for first, *_ in references(text) if first in enabled]
    return {name: value for name, value in enabled.items() if name in found}


def _enabled(part: Any) -> Any:
    if isinstance(part, Mapping):
        return None if part.get(DISABLED) is True else {name: _enabled(value) for name, value in part.items()}
    return [_enabled(value) for value in part] if isinstance(part, list) else part
