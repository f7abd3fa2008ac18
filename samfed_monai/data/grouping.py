"""Groups of images that a partition must not split: one sequence, patient or lesion, or identical bytes."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from samfed_monai.core.errors import Problems, refused
from samfed_monai.core.words import normal
from samfed_monai.data.checks import stem
from samfed_monai.data.reading import SUFFIXES


def clusters(hashes: Sequence[str], groups: Sequence[str | None]) -> list[list[int]]:
    """Indices of images that may not be separated.

    Two images belong together when they share a group or their bytes, directly or through others.

    Args:
        hashes: SHA-256 of every image.
        groups: group of every image, or ``None``.

    Returns:
        Lists of indices that cover every image exactly once, ordered by their smallest hash, so that the result does
        not depend on file names or on the order of the input.
    """
    first: dict[tuple[str, str], int] = {}
    edges = []
    for index, (digest, group) in enumerate(zip(hashes, groups, strict=True)):
        for key in [("bytes", digest)] + ([("group", same)] if (same := normal(group or "")) else []):
            edges.append((index, first.setdefault(key, index)))
    if not edges:
        return []
    graph = coo_array((np.ones(len(edges)), np.transpose(edges)), shape=(len(hashes), len(hashes)))
    members: dict[int, list[int]] = {}
    for index, part in enumerate(connected_components(graph, directed=False)[1].tolist()):
        members.setdefault(part, []).append(index)
    return sorted(members.values(), key=lambda cluster: min(hashes[index] for index in cluster))


def draw(sizes: Sequence[int], target: int, random: np.random.Generator, *, leave: int = 1) -> list[int]:
    """Draws clusters at random until their sizes add up to ``target`` as nearly as whole clusters allow.

    Args:
        sizes: number of images in each cluster.
        target: number of images wanted; 0 draws nothing.
        random: source of the order in which clusters are tried.
        leave: number of clusters that stay behind in any case.

    Returns:
        Indices of the drawn clusters, ascending; at least one when ``target`` is positive and enough are left.
    """
    drawn: list[int] = []
    total = 0
    order = [int(index) for index in random.permutation(len(sizes))]
    for index in order:
        if len(drawn) < len(sizes) - leave and abs(total + sizes[index] - target) < abs(total - target):
            drawn.append(index)
            total += sizes[index]
    if target > 0 and not drawn and len(sizes) > leave:
        drawn = [min(order, key=lambda index: sizes[index])]
    return sorted(drawn)


def subset(hashes: Sequence[str], limit: int | None) -> list[int]:
    """Indices of ``limit`` images, chosen by their hashes: no order of names matters, and a smaller subset lies inside
    a larger one. ``None`` keeps all. The indices come back ascending.
    """
    chosen = sorted(range(len(hashes)), key=lambda index: (hashes[index], index))
    return sorted(chosen if limit is None else chosen[:limit])


class Groups:
    """The groups that a CSV file gives to images.

    Args:
        path: CSV with a header: the group's column, and one of :data:`NAMES`, of which the first that is there counts.
            A name is a path (with slashes or backslashes), a file name, or one without its ending. A path matches from
            its end, whichever folder it or the image's starts at: a row ``a/1.png`` is of ``site/a/1.png`` and not of
            ``b/1.png``. An empty group means none. Names and groups are compared as :func:`normal` writes them.
        column: name of the group's column (``lesion_id``, ``patient`` ...), in upper or lower case.
        of_folders: whether a row may name the folder of images that no row names, as the volume that slices are of.

    Raises:
        Refused: no such file or column, another kind of file, a row that names no image or whose values are not those
            of its columns, two rows that contradict each other.
    """

    def __init__(self, path: str | Path, column: str = "group", *, of_folders: bool = False) -> None:
        self.path, self.column, self.of_folders = Path(path), column, of_folders
        self.rows = _read(self.path, column)
        self._by_stem: dict[str, list[tuple[PurePosixPath, str]]] = {}
        for listed, group in self.rows:
            for name in _stems(listed):
                self._by_stem.setdefault(name, []).append((PurePosixPath(listed), group))

    def of(self, image: str) -> str | None:
        """The group of an image, by its relative path.

        Raises:
            Refused: two rows of different groups match it equally well.
        """
        here = PurePosixPath(normal(image))
        rows = self._by_stem.get(stem(image), [])
        if not rows and self.of_folders:
            here = here.parent
            rows = self._by_stem.get(here.name, [])
        counts = [(parts_in_common(here, listed), group) for listed, group in rows]
        longest = max((1, *(count for count, _ in counts)))  # a row of another folder is of another image
        groups = {group for count, group in counts if count == longest}
        if len(groups) > 1:
            hint = "give an 'image' column with folders in it"
            raise refused(self.path, found=f"{sorted(groups)} for {image}", expected="one group", hint=hint)
        return (groups.pop() or None) if groups else None

    def without(self, images: Iterable[str]) -> list[str]:
        """The images that have no group, each once.

        Raises:
            Refused: not one of the images has a group.
        """
        images = list(dict.fromkeys(images))
        lacking = [image for image in images if self.of(image) is None]
        if images and len(lacking) == len(images):
            named = [name for name, group in self.rows if group]
            found = f"only groups of names like {named[0]!r}" if named else f"nothing in the column {self.column!r}"
            hint = "give an 'image' column with paths, or an 'id' column with file names without their endings"
            raise refused(self.path, found=found, expected=f"groups of images like {images[0]!r}", hint=hint)
        return lacking

    def of_several(self, images: Iterable[str]) -> list[str]:
        """Names without folders that several images have, which then are all of the group of that row."""
        count = Counter(stem(image) for image in dict.fromkeys(images))
        bare = {name for name, group in self.rows if group and "/" not in name}
        return sorted(name for name in bare if sum(count[each] for each in _stems(name)) > 1)


NAMES = ("image", "image_name", "image_path", "path", "file", "file_name", "filename", "image_id", "isic_id", "id")
"""Columns that name images, in upper or lower case, with blanks or hyphens for the underline."""
NONE = frozenset({"", "nan", "NaN", "NaT", "<NA>", "None", "NULL", "null", "#N/A", "#NV"})
"""Values that mean no group: what pandas, R, databases and Excel write where a value is missing."""
_WHOLE = re.compile(r"^(\d+)\.0+$")  # as pandas writes a whole number of a column with gaps
_SPOILT = re.compile(r"\d(?:[.,]\d+)?E\+\d+|#[A-ZÄÖÜ/0]{2,}[!?]|#{3,}")
_FORMULA = re.compile(r'="?(.*?)"?')  # ="001", which keeps Excel from reading a number
UNQUOTED = "close its quotes, or double those that belong to a value"
_BINARY = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0", b"PAR1", b"\x1f\x8b", b"%PDF")
"""First bytes of workbooks (.xlsx, .ods, .xls), Parquet, gzip and PDF."""
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "'|'"}


def _read(path: Path, column: str) -> list[tuple[str, str]]:
    """Name and group of every row, in their normal form."""
    text, encoding = _text(path)
    lines = list(io.StringIO(text, newline=""))
    declared = re.fullmatch(r'"?sep=(.)"?[;,]*', lines[0].strip("\r\n"), re.IGNORECASE) if lines else None
    start = 1 if declared else 0
    wanted = _title(column)
    first = next((line for line in lines[start:] if normal(line)), "")
    headers = {each: next(csv.reader([first], delimiter=each), []) for each in _DELIMITERS}
    fitting = [each for each, header in headers.items() if wanted in map(_title, header)]
    delimiter = declared[1] if declared else max(fitting or headers, key=lambda each: len(headers[each]))
    how = f"{encoding}, separated by {_DELIMITERS.get(delimiter, repr(delimiter))}"
    rows = _rows(lines[start:], delimiter, path, start)
    header = [normal(title) for title in rows[0][1]] if rows else []
    titles = [_title(title) for title in header]
    key = next((name for name in NAMES if name in titles and name != wanted), None)
    twice = any(titles.count(str(title)) > 1 for title in (wanted, key))
    if wanted not in titles or key is None or twice:
        hint = "name the group's column with --group-column"
        expected = f"columns {column!r} and one of {', '.join(map(repr, NAMES))}, each once"
        raise refused(path, found=f"the columns {header} ({how})", expected=expected, hint=hint)
    places = titles.index(key), titles.index(wanted)
    problems, seen, found = Problems(), dict[str, tuple[int, str]](), list[tuple[str, str]]()
    for line, row in rows[1:]:
        where = f"{path}, line {line}"
        name, group = (_value(row[place]) if place < len(row) else "" for place in places)
        name, group = name.replace("\\", "/"), "" if group in NONE else _WHOLE.sub(r"\1", group)
        if len(row) > len(header) and any(each.strip() for each in row[len(header) :]):
            there, hint = f"{len(row)} values ({how})", "put values that hold the separator into quotes"
            problems.add(where, found=there, expected=f"{len(header)}, as the header has", hint=hint)
        elif any("\n" in row[place] or "\r" in row[place] for place in places if place < len(row)):
            problems.add(where, found="a value of several lines", expected="a name and a group", hint=UNQUOTED)
        elif not name:
            expected, hint = f"a name in the column {key!r}", "complete the row, or delete it"
            problems.add(where, found="none", expected=expected, hint=hint)
        elif spoilt := next((each for each in (name, group) if _SPOILT.fullmatch(each)), None):
            hint = "Excel has changed it: format the column as text, and fill it again"
            problems.add(where, found=repr(spoilt), expected="a name and a group as they were given", hint=hint)
        elif seen.setdefault(name, (line, group))[1] != group:
            there = f"{group!r} for {name!r}, and {seen[name][1]!r} in line {seen[name][0]}"
            problems.add(where, found=there, expected="one group for an image", hint="correct one of the two rows")
        else:
            found.append((name, group))
    problems.refuse_if_any()
    return found


def _text(path: Path) -> tuple[str, str]:
    """What a file holds, and the encoding that it was read in."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise refused(path, str(error), "a CSV file", "check the path") from None
    if content.startswith(_BINARY):
        raise refused(path, "a workbook or another binary file", "a CSV file", "save the sheet as CSV (UTF-8)")
    mark = next((encoding for mark, encoding in _MARKS.items() if content.startswith(mark)), None)
    guesses = ["utf-8", "cp1252"]
    if content.count(0) > len(content) // 4:  # no mark; in UTF-16 the zeros of plain letters are at every second place
        guesses = ["utf-16-le" if content[1::2].count(0) >= content[::2].count(0) else "utf-16-be"]
    for encoding in [mark] if mark else guesses:
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError:
            continue
        if "\0" not in text:
            return text, encoding
    found = f"bytes that are no {' and no '.join([mark] if mark else guesses)}"
    raise refused(path, found, "a CSV file", "save it as CSV (UTF-8)")


def _rows(lines: Sequence[str], delimiter: str, path: Path, skipped: int) -> list[tuple[int, list[str]]]:
    """Line and values of every row that holds any."""
    reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True)
    try:
        return [(reader.line_num + skipped, row) for row in reader if any(normal(value) for value in row)]
    except csv.Error as error:
        where = f"{path}, line {reader.line_num + skipped}"
        raise refused(where, str(error), "a row of a CSV file", UNQUOTED) from None


def _title(name: str) -> str:
    return re.sub(r"[ -]", "_", normal(name).casefold())


def _value(text: str) -> str:
    formula = _FORMULA.fullmatch(normal(text))
    return normal(formula[1] if formula else text)


def _stems(name: str) -> set[str]:
    """What an image's stem may be to go with a name; what follows the last dot need not be a suffix."""
    last = PurePosixPath(name)
    return {last.name, last.stem if last.suffix.lower() in SUFFIXES else _WHOLE.sub(r"\1", last.name)}


def parts_in_common(one: PurePosixPath, other: PurePosixPath) -> int:
    """How many parts the shorter of two paths of one stem has, all of them those of the other's end; 0 if not."""
    count = min(len(one.parts), len(other.parts))
    return count if one.parts[-count:-1] == other.parts[-count:-1] else 0
