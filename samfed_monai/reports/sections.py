"""Sections of a page: collections of runs, each with its title, its command and its table."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from samfed_monai.core.errors import Problem, Problems, Refused
from samfed_monai.core.io import read_json
from samfed_monai.reports.compare import Table, comparison_table
from samfed_monai.reports.record import SUFFIX, read_record
from samfed_monai.reports.run_data import RunData


@dataclass(frozen=True)
class Section:
    """One comparison of a page.

    Args:
        title: heading; empty for a page of one comparison.
        table: the comparison.
        command: command line that made its runs, or ``None``.
    """

    title: str
    table: Table
    command: str | None = None

    @property
    def slug(self) -> str:
        """The title as a part of a file name."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


def read_sections(given: Iterable[str], commands: Iterable[str] = ()) -> list[Section]:
    """Sections of ``TITLE=DIR`` words.

    Args:
        given: title and folder of runs, as ``samfed compare`` leaves it (``DIR/<row>/seed-<n>/``), or the record of
            runs that ``samfed compare --record`` wrote (``FILE.jsonl``).
        commands: ``TITLE=COMMAND``, for sections whose ``DIR/comparison.json`` names none, or not the one to show.

    Raises:
        Refused: a word without ``=``, a title twice or unknown, a folder without runs, or runs that cannot be compared.
    """
    problems = Problems()
    folders = _pairs(given, "--section", "DIR", problems)
    shown = _pairs(commands, "--section-command", "COMMAND", problems)
    for title in shown.keys() - folders.keys():
        problems.add("--section-command", found=repr(title), expected=f"a section's title: {', '.join(folders)}")
    sections = []
    for title, folder in folders.items():
        with problems.collected():
            command = shown.get(title) or _command_of(Path(folder))
            sections.append(Section(title, comparison_table(runs_in(folder)), command))
    problems.refuse_if_any()
    return sections


def runs_in(folder: str | Path) -> list[Path] | list[RunData]:
    """The runs of a record, or the finished ones below a folder, at most two levels down, in the order of their names.

    Args:
        folder: where to look.

    Raises:
        Refused: there is none, or one cannot be read.
    """
    found: list[Path] | list[RunData]
    if Path(folder).suffix == SUFFIX:
        found = read_record(folder)
    else:
        results = (path for pattern in ("*/results.json", "*/*/results.json") for path in Path(folder).glob(pattern))
        found = sorted(path.parent for path in results)
    if not found:
        mend = "name the --output-dir of `samfed compare`"
        raise Refused([Problem(str(folder), found="no finished run", expected="a folder of runs", mend=mend)])
    return found


def unique_slugs(sections: Sequence[Section]) -> list[str]:
    """A part of a file name for each section; equal ones get a number."""
    slugs: list[str] = []
    for section in sections:
        slug = section.slug
        slugs.append(slug if slug not in slugs else f"{slug}-{len(slugs) + 1}")
    return slugs


def _command_of(folder: Path) -> str | None:
    path = folder / "comparison.json"
    command = read_json(path).get("command") if path.is_file() else None
    return command if isinstance(command, str) else None


def _pairs(words: Iterable[str], option: str, what: str, problems: Problems) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for word in words:
        title, equals, value = (part.strip() for part in word.partition("="))
        if not (title and equals and value):
            problems.add(option, found=repr(word), expected=f"TITLE={what}")
        elif title in pairs:
            problems.add(option, found=f"{title!r} twice", expected="each title once")
        else:
            pairs[title] = value
    return pairs
