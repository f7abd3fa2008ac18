"""Docstrings name other things by roles of Sphinx; the reference pages have them as code and links."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:class|func|meth|mod|data|attr):`~?([^`]+)`")


def as_markdown(text: str) -> str:
    """``:class:`samfed_monai.handlers.Term``` as a link of mkdocstrings to it; shorter names as code."""

    def one(role: re.Match[str]) -> str:
        name = role[1]
        short = name.rpartition(".")[2]
        return f"[`{short}`][{name}]" if name.startswith("samfed_monai.") else f"`{name}`"

    return ROLE.sub(one, re.sub(r"::$", ":", text, flags=re.MULTILINE)).replace("``", "`")


class SphinxRoles(griffe.Extension):
    """Rewrites every docstring that is read."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called with each module, class, function and attribute."""
        if obj.docstring:
            obj.docstring.value = as_markdown(obj.docstring.value)
