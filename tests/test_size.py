"""The counts of ``make size``."""

import re

import pytest

from tests.size import BOUNDS, REACHED, code_lines, dialect, main, measured

MODULE = '''"""A module.

Of three lines."""

import os  # a comment beside code

# a comment alone
class One:
    """A class."""

    text = """not a
    docstring"""

    async def call(self) -> str:
        """A method."""
        return os.path.join(
            "a",

            self.text,
        )
'''


def test_code_lines_exclude_docstrings_comments_and_blank_lines():
    assert code_lines(MODULE) == 1 + 1 + 2 + 1 + 4  # import, class, text, def; the return without its empty line
    assert code_lines('"""Nothing else."""\n') == code_lines("") == 0
    assert code_lines('x = 1\n"""About x."""\n') == 2, "a text below an assignment is no docstring"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("It is told. ``self._told``, TOLD, tolde, untold", ["told", "told", "TOLD"]),
        ("It stands there and stood; outstanding, standard", ["stands", "stood"]),
        ("mended, amended, recommend, mends", ["mended", "mends"]),
        ("nobody_else, Somebody", ["nobody", "Somebody"]),
        ("the latest, lest it bears that out", ["lest", "bears that out"]),
        ("lies in, relies in", ["lies in"]),
        ("knobs and KNOBS_OF and a knob", ["knobs", "KNOBS", "knob"]),
    ],
)
def test_dialect_words_are_found_in_text_and_identifiers(text, words):
    assert dialect(text) == [(1, word) for word in words]
    assert dialect("plain\nand it lies\nin two lines") == [(2, "lies\nin")]


def test_raised_limits_exceed_budget():
    assert all(limit > BOUNDS[name] for name, limit in REACHED.items())


def test_exceeded_limit_is_error_only_with_check(tmp_path, capsys):
    for name, text in {
        "samfed_monai/a.py": MODULE,
        "samfed_monai/sub/b.py": "x = 1\n",
        "tests/test_a.py": "# one\n# two\n",
        "docs/page.md": "three words here, and told\n<!-- a.json: options -->\n| not counted |\n<!-- end -->\n",
        "docs/methods.md": "not counted\n",
        "docs/results/table.md": "told, else not counted\n",
        "docs/reference/a.md": "not counted\n",
        "README.md": "word " * 601,
        "CHANGELOG.md": "word " * 600,
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = dict(measured(tmp_path))
    assert BOUNDS.keys() <= found.keys()
    assert (found["package, code lines"], found["package, files"], found["tests, raw lines"]) == (10, 2, 2)
    assert (found["docs, words"], found["README, words"]) == (5, 601)
    assert [main(words, tmp_path) for words in ([], ["--check"])] == [0, 1]
    printed = capsys.readouterr().out
    assert re.search(r"README, words +601 +of at most +600, 1 too many\n", printed)
    (tmp_path / "README.md").write_text("short")
    assert main(["--check"], tmp_path) == 1
    assert re.search(r"dialect in package and pages +2 +of at most +0, 2 too many\n  docs/page\.md:1: told\n", printed)
    for name in ("docs/page.md", "docs/results/table.md"):
        (tmp_path / name).write_text("plain")
    assert main(["--check"], tmp_path) == 0
