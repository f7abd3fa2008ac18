"""MONAI's configuration parser, changed so that plain text is not rewritten.

MONAI 1.6 replaces ``#``, its old spelling of ``::``, in every string of a configuration, also in paths and site names
(``ReferenceResolver.normalize_id``): results of ``runs/C#`` would be in ``runs/C::``. Importing this module limits that
to references, expressions and macros, which start with ``@``, ``$`` or ``%``. MONAI FL creates its parsers itself, so
the classes are patched, not derived from.
"""

from __future__ import annotations

import functools
from typing import Any

from monai.bundle import ConfigParser, ConfigWorkflow, ReferenceResolver

from samfed_monai.config.parse import REFERRING

__all__ = ["ConfigParser", "ConfigWorkflow"]


def _keep_text(owner: type, name: str, text: int) -> None:
    """Makes a class method of MONAI return its argument number ``text`` unchanged unless that is a reference."""
    rewrite = getattr(owner, name)

    @functools.wraps(rewrite)
    def wrapper(cls: type, *arguments: Any, **keywords: Any) -> Any:
        value = arguments[text] if len(arguments) > text else keywords["value"]
        return rewrite(*arguments, **keywords) if value.startswith(REFERRING) else value

    setattr(owner, name, classmethod(wrapper))


_keep_text(ReferenceResolver, "update_refs_pattern", 0)
_keep_text(ConfigParser, "resolve_relative_ids", 1)
