"""The size of the repository and its budget; ``make size`` prints them.

Usage::

    python -m tests.size            # prints all numbers with their bounds
    python -m tests.size --check    # the same, and exit code 1 if a limit is exceeded (part of `make check`)

Lines with only docstrings, comments or white space are not lines of code. Words of documentation exclude generated
text: ``docs/results``, ``docs/reference``, :data:`GENERATED` and tables between two marks.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

BOUNDS = {
    "package, code lines": 24_000,
    "package, files": 200,
    "tests, raw lines": 40_000,
    "README, words": 600,
    "docs, words": 27_100,
    "CHANGELOG, words": 600,
    "dialect in package and pages": 0,
}
"""The budget; other numbers have no limit."""

REACHED = {"package, code lines": 30_914, "package, files": 227, "tests, raw lines": 47_347}
"""Limits of ``--check`` until the budget is reached. They only go down; they went up once, for compression,
generations, the scored start and scores of volumes, for which the budget leaves 2,000 lines of code."""

GENERATED = ("benchmarks.md", "methods.md", "results-schema.md")
"""Pages of ``docs`` that are generated as a whole."""

_TABLE = re.compile(r"<!-- (?!end).*? -->.*?<!-- end.*? -->", re.DOTALL)

DIALECT = re.compile(
    r"(?<![a-z])(told|stand(s|ing)?|stood|(lies?|lay)\s+in|ha(s|ve) (its|their) homes?|mend(s|ed|ing)?|heed(s|ed|ing)?|"
    r"nobody|somebody|otherwise than|lest|bears? (it |them |that |)out|knobs?)(?![a-z])",
    re.IGNORECASE,
)
"""Words to replace by plainer ones; parts of identifiers also count."""

_WITHOUT_CODE = {
    *(tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER),
}


def code_lines(text: str) -> int:
    """Number of lines of a Python file, without docstrings, comments and white space."""
    documented: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                documented.update(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    written = (range(each.start[0], each.end[0] + 1) for each in tokens if each.type not in _WITHOUT_CODE)
    return len({line for lines in written for line in lines} - documented)


def dialect(text: str) -> list[tuple[int, str]]:
    """Line and text of each match of :data:`DIALECT`."""
    return [(text.count("\n", 0, found.start()) + 1, found.group()) for found in DIALECT.finditer(text)]


def measured(root: Path) -> Iterator[tuple[str, int]]:
    """Yields the printed numbers of the checkout in ``root`` by name."""
    package, tests = (_texts(sorted((root / name).rglob("*.py"))) for name in ("samfed_monai", "tests"))
    pages = (path.relative_to(root) for path in sorted((root / "docs").rglob("*.md")))
    docs = _texts(root / page for page in pages if page.parts[1] not in ("results", "reference", *GENERATED))
    readme, changelog = (_texts([root / name]) for name in ("README.md", "CHANGELOG.md"))
    yield "package, code lines", sum(map(code_lines, package))
    yield "package, raw lines", _lines(package)
    yield "package, files", len(package)
    yield "tests, raw lines", _lines(tests)
    for name, texts in (("README", readme), ("docs", docs), ("CHANGELOG", changelog)):
        yield f"{name}, words", sum(len(_TABLE.sub("", text).split()) for text in texts)
    yield "dialect in package and pages", len(list(_dialect_of(root)))


def _dialect_of(root: Path) -> Iterator[str]:
    # the places of all words to replace, one text each
    patterns = ("samfed_monai/**/*.py", "*.md", "docs/**/*.md", "study/*.md", "bundles/**/*.md")
    for path in sorted(path for pattern in patterns for path in root.glob(pattern)):
        for line, word in dialect(path.read_text(encoding="utf-8")):
            yield f"{path.relative_to(root)}:{line}: {word}"


def _texts(paths: Iterable[Path]) -> list[str]:
    return [path.read_text(encoding="utf-8") for path in paths]


def _lines(texts: Iterable[str]) -> int:
    return sum(text.count("\n") for text in texts)


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """Prints all numbers; with ``--check``, returns 1 if a limit is exceeded."""
    parser = argparse.ArgumentParser(prog="python -m tests.size", description="The size of the repository.")
    parser.add_argument("--check", action="store_true", help="exit code 1 where a limit is exceeded")
    check, exceeded = parser.parse_args(arguments).check, []
    for name, number in measured(root):
        bound = BOUNDS.get(name)
        limit = REACHED.get(name, bound)
        over = "" if bound is None or number <= bound else f", {number - bound:,} too many"
        over += f"; the limit is {limit:,}" if over and limit != bound else ""
        print(f"{name:36} {number:8,}" + ("" if bound is None else f"  of at most {bound:6,}{over}"))
        exceeded += [name] if limit is not None and number > limit else []
    print("".join(f"  {place}\n" for place in _dialect_of(root)), end="")
    return int(check and bool(exceeded))


if __name__ == "__main__":
    raise SystemExit(main())
