"""Strict JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from samfed_monai.errors import Problem, Problems, Refused
from samfed_monai.io.files import write_text


def write_json(path: str | Path, content: Any) -> None:
    """Writes ``content`` as indented UTF-8 JSON, atomically; NaN and infinity are refused by ``json``."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Reads JSON strictly.

    Raises:
        Refused: the file is missing, is not UTF-8 JSON (with line and column), or names a key twice in one object.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        mend = "check the path"
        found = error.strerror or str(error)
        raise Refused([Problem(str(path), found=found, expected="a readable file", mend=mend)]) from error
    except UnicodeDecodeError as error:
        raise Refused([Problem(str(path), found=f"byte {error.start} is not UTF-8", expected="UTF-8 JSON")]) from error
    problems = Problems()

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
        content = json.loads(text, object_pairs_hook=no_duplicates)
    except json.JSONDecodeError as error:
        lines = text.rstrip().split("\n")
        line = lines[min(error.lineno, len(lines)) - 1].strip() if text.strip() else "an empty file"
        problems.add(
            f"{path.name}, line {error.lineno}, column {error.colno}",
            found=f"{line!r} ({error.msg})",
            expected="valid JSON",
            mend="look for a trailing comma or a missing quote at or just before this place",
        )
    problems.refuse_if_any()
    return content
