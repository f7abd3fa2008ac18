"""Strict JSON."""

from __future__ import annotations

import codecs
import json
import re
from pathlib import Path
from typing import Any

from samfed_monai.errors import Problem, Problems, Refused
from samfed_monai.io.files import write_text

_MENDS = (
    (re.compile(r"//|/\*|#"), "JSON has no comments; write a key `_note` in a configuration, or remove it"),
    (re.compile(r"(True|False|None)\b"), "write true / false / null"),
    (re.compile("['`\u2018\u2019\u201c\u201d\u201e]"), 'write double quotes (")'),
)
"""What stands where JSON stops being valid, and how to mend it."""
_DECIMAL_COMMA = re.compile(r"\d,$")


def write_json(path: str | Path, content: Any) -> None:
    """Writes ``content`` as indented UTF-8 JSON, atomically; NaN and infinity are refused by ``json``."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | Path, *, byte_order_mark: bool = True) -> Any:
    """Reads JSON strictly.

    Args:
        path: the file.
        byte_order_mark: whether a file may begin with one, as Windows Notepad writes it. A bundle's configuration may
            not: MONAI reads it as well, and takes none.

    Raises:
        Refused: the file is missing, is not UTF-8 JSON (with line and column), or names a key twice in one object.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
        marked = content.startswith(codecs.BOM_UTF8)
        text = content.decode("utf-8-sig")
    except OSError as error:
        mend = "check the path"
        found = error.strerror or str(error)
        raise Refused([Problem(str(path), found=found, expected="a readable file", mend=mend)]) from error
    except UnicodeDecodeError as error:
        found, mend = f"byte {error.start} is not UTF-8", "save it as UTF-8"
        raise Refused([Problem(str(path), found=found, expected="UTF-8 JSON", mend=mend)]) from error
    problems = Problems()
    if marked and not byte_order_mark:
        expected, mend = "no byte order mark, as MONAI reads no file with one", "save it as UTF-8 without BOM"
        problems.add(path.name, found="one at its beginning", expected=expected, mend=mend)

    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen: dict[str, Any] = {}
        for key, value in pairs:
            if key in seen:
                problems.add(
                    f"{path.name} -> {key}",
                    found="the same key twice in one object",
                    expected="each key once",
                    mend="delete one of them (JSON would silently keep the last)",
                )
            seen[key] = value
        return seen

    try:
        parsed = json.loads(text, object_pairs_hook=no_duplicates)
    except json.JSONDecodeError as error:
        lines = text.rstrip().split("\n")
        line = lines[min(error.lineno, len(lines)) - 1].strip() if text.strip() else "an empty file"
        problems.add(
            f"{path.name}, line {error.lineno}, column {error.colno}",
            found=f"{line!r} ({error.msg})",
            expected="valid JSON",
            mend=_mend(text, error.pos),
        )
    problems.refuse_if_any()
    return parsed


def _mend(text: str, position: int) -> str:
    for pattern, mend in _MENDS:
        if pattern.match(text, position):
            return mend
    if text[position : position + 1].isdigit() and _DECIMAL_COMMA.search(text[:position]):
        return "write decimals with a point, as 0.5"
    return "look for a trailing comma or a missing quote at or just before this place"
