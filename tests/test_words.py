"""Pages and packages use plain words: none of those in :data:`tests.size.DIALECT`."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

from tests.size import dialect

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")),
    ROOT / "study" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "bundles").glob("*/docs/README.md")),
]
ROOMS = sorted(path.parent.name for path in (ROOT / "samfed_monai").glob("*/__init__.py"))

_QUOTED = (r"(?s)<!--.*?-->", r"(?ms)^```.*?^```", r"`[^`\n]*`", r"\]\([^)]*\)")


def prose(page: str) -> str:
    """A page without comments, code and link targets, which quote names and messages of the package."""
    for pattern in _QUOTED:
        page = re.sub(pattern, "", page)
    return page


def texts(module: str) -> str:
    """Comments and strings of a module, including docstrings and messages, without names."""
    tokens = tokenize.generate_tokens(io.StringIO(module).readline)
    comments = [token.string for token in tokens if token.type == tokenize.COMMENT]
    nodes = ast.walk(ast.parse(module))
    constants = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return "\n".join([*comments, *constants])


def found(text: str) -> dict[str, int]:
    return {word: number for word, number in dialect(text).items() if number}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_page_has_no_dialect_words(page: Path):
    assert found(prose(page.read_text(encoding="utf-8"))) == {}


@pytest.mark.parametrize("room", ROOMS)
def test_package_has_no_dialect_words(room: str):
    files = sorted((ROOT / "samfed_monai" / room).rglob("*.py"))
    wrong = {path.name: words for path in files if (words := found(texts(path.read_text(encoding="utf-8"))))}
    assert wrong == {}


def test_quotes_and_identifiers_are_ignored():
    assert found(prose("A knob.\n<!-- knobs -->\n`told` [it](lest.md)\n```text\nheed\n```\n")) == {"knob": 1}
    module = '"""It stands."""\ntold = "nobody"  # mended\nknob = f"{told} lies in"\n'
    assert found(texts(module)) == {"stands": 1, "nobody, somebody": 1, "mend": 1, "lies in": 1}
