"""MONAI's parser of configurations, which leaves text as it is.

MONAI 1.6 takes ``#`` for its old spelling of ``::`` in every text of a configuration, also in paths and names of sites
(``ReferenceResolver.normalize_id``): results of ``runs/C#`` would be in ``runs/C::``. Importing this module limits that
to references, expressions and macros, which begin with ``@``, ``$`` or ``%``. MONAI FL makes its parsers itself, so its
classes are changed and not derived from.
"""

from __future__ import annotations

import functools
from typing import Any

from monai.bundle import ConfigParser, ConfigWorkflow, ReferenceResolver

from samfed_monai.config.parse import REFERRING

__all__ = ["ConfigParser", "ConfigWorkflow"]


def _leave_text(owner: type, name: str, text: int) -> None:
    """Has a class method of MONAI return its argument number ``text`` where that refers to nothing."""
    rewrite = getattr(owner, name)

    @functools.wraps(rewrite)
    def kept(cls: type, *arguments: Any, **named: Any) -> Any:
        value = arguments[text] if len(arguments) > text else named["value"]
        return rewrite(*arguments, **named) if value.startswith(REFERRING) else value

    setattr(owner, name, classmethod(kept))


_leave_text(ReferenceResolver, "update_refs_pattern", 0)
_leave_text(ConfigParser, "resolve_relative_ids", 1)
