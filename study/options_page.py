"""The tables of options in ``docs/options.md``, from ``options.json`` and the bundles' files."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from samfed_monai.config.options import option_tables
from samfed_monai.config.parse import lookup, split_id
from samfed_monai.core.errors import Problem, Refused
from samfed_monai.core.io import read_json

_TABLE = re.compile(r"(<!-- (\w+\.json): ([\w-]+) -->\n)(.*?)(<!-- end -->\n)", re.DOTALL)


def options_page(text: str, bundles: Sequence[Path]) -> str:
    """Updates the tables of options in a page, from marks such as ``<!-- train.json: paths -->`` to ``<!-- end -->``.

    Args:
        text: Markdown.
        bundles: folders of the bundles whose defaults the tables show.

    Raises:
        Refused: the text has no marks, or a mark of an unknown table.
    """
    tables = [f"<!-- {file}: {name} -->" for file, tables in option_tables().items() for name in tables]
    marks = [match.group(1).strip() for match in _TABLE.finditer(text)]
    if unknown := [mark for mark in marks if mark not in tables] or ([] if marks else ["no place for a table"]):
        expected = f"one of {', '.join(tables)}, and below it <!-- end -->"
        raise Refused([Problem("page", found=mark, expected=expected) for mark in unknown])

    def table(match: re.Match[str]) -> str:
        begin, file, name, _, end = match.groups()
        contents = [read_json(bundle / "configs" / file) for bundle in bundles]
        rows = [
            f"| `{option}` | {_defaults(contents, option)} | {keywords['description']} |\n"
            for option, keywords in option_tables()[file][name].items()
        ]
        return f"{begin}| option | default | what it does |\n| --- | --- | --- |\n{''.join(rows)}{end}"

    return _TABLE.sub(table, text)


def _defaults(contents: Sequence[Mapping[str, Any]], option: str) -> str:
    shown = [_default(lookup(content, split_id(option))) for content in contents]
    return ", ".join(dict.fromkeys(shown))


def _default(value: Any) -> str:
    if isinstance(value, Mapping) and value:
        return ", ".join(f"`{name}` {_default(part)}" for name, part in value.items())
    if isinstance(value, str) and value.startswith("@"):
        return f"that of `{value[1:]}`"
    if isinstance(value, str) and value:
        return f"`{value}`"
    return json.dumps(value) if value == "" or isinstance(value, (bool, int, float)) else f"`{json.dumps(value)}`"
