"""Groups (sequence, patient, lesion) of images, out of a CSV file."""

from __future__ import annotations

import csv
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath

from samfed_monai.data.checks import stem
from samfed_monai.data.reading import SUFFIXES
from samfed_monai.errors import Problem, Problems, Refused


def read_groups(path: str | Path, *, column: str = "group") -> Callable[[str], str | None]:
    """A function from an image's relative path to its group.

    Args:
        path: CSV with a header: the group's column, and ``image`` (a path, with slashes or backslashes) or ``id`` (a
            stem, or a file name). Paths match from their ends, so it does not matter which folder they start at; an
            empty group means none.
        column: name of the group's column (``lesion_id``, ``patient`` ...).

    Raises:
        Refused: no such file or column, a row that names no image, or (when asked) a path that two rows of different
            groups match equally well.
    """
    path = Path(path)
    key, rows = _read(path, column)
    by_stem: dict[str, list[tuple[PurePosixPath, str]]] = {}
    for listed, group in rows:
        for name in _stems(listed, key):
            by_stem.setdefault(name, []).append((PurePosixPath(listed), group))

    def group_of(image: str) -> str | None:
        candidates = by_stem.get(stem(image), [])
        if key == "image" and candidates:
            length = [_common_end(PurePosixPath(_name(image, key)), listed) for listed, _ in candidates]
            candidates = [candidate for candidate, n in zip(candidates, length, strict=True) if n == max(length)]
        groups = {group for _, group in candidates}
        if len(groups) > 1:
            mend = "give an 'image' column with folders in it"
            raise Refused([Problem(str(path), found=f"{sorted(groups)} for {image}", expected="one group", mend=mend)])
        return (groups.pop() or None) if groups else None

    return group_of


def without_group(images: Iterable[str], path: str | Path, *, column: str = "group") -> list[str]:
    """The images that a file gives no group, each once.

    Args:
        images: relative paths.
        path: as for :func:`read_groups`, with ``column``.

    Raises:
        Refused: not one of the images has a group, and what :func:`read_groups` refuses.
    """
    images = list(dict.fromkeys(images))
    group_of = read_groups(path, column=column)
    lacking = [image for image in images if group_of(image) is None]
    if images and len(lacking) == len(images):
        named = [name for name, group in _read(Path(path), column)[1] if group]
        found = f"only groups of names like {named[0]!r}" if named else f"nothing in the column {column!r}"
        mend = "give an 'image' column with paths, or an 'id' column with file names without their endings"
        raise Refused([Problem(str(path), found=found, expected=f"groups of images like {images[0]!r}", mend=mend)])
    return lacking


def _read(path: Path, column: str) -> tuple[str, list[tuple[str, str]]]:
    """The column that names images, and name and group of every row."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise Refused([Problem(str(path), found=str(error), expected="a CSV file", mend="check the path")]) from None
    header = list(rows[0][1]) if rows else []
    key = next((name for name in ("image", "id") if name in header), None)
    if column not in header or key is None:
        mend = "name the group's column with --group-column"
        expected = f"columns {column!r} and 'image' or 'id'"
        raise Refused([Problem(str(path), found=f"the columns {header}", expected=expected, mend=mend)])
    problems = Problems()
    for line, row in rows:
        if not row[key]:
            expected, mend = f"a name in the column {key!r}", "complete the row, or delete it"
            problems.add(f"{path}, line {line}", found="none", expected=expected, mend=mend)
    problems.refuse_if_any()
    return key, [(_name(row[key], key), row[column] or "") for _, row in rows]


def _name(text: str, key: str) -> str:
    name = unicodedata.normalize("NFC", text)
    return name.replace("\\", "/") if key == "image" else name


def _stems(name: str, key: str) -> set[str]:
    """What an image's stem may be to go with a name; what follows the last dot of an id need not be a suffix."""
    if key == "image":
        return {stem(name)}
    return {name, stem(name)} if PurePosixPath(name).suffix.lower() in SUFFIXES else {name}


def _common_end(one: PurePosixPath, other: PurePosixPath) -> int:
    count = 0
    for left, right in zip(reversed(one.parts), reversed(other.parts), strict=False):
        if left != right:
            break
        count += 1
    return count
