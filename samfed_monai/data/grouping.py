"""Groups of images that a partition must not split: one sequence, patient or lesion, or identical bytes."""

from __future__ import annotations

import csv
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from samfed_monai.core.errors import Problem, Problems, Refused
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
    parent = list(range(len(hashes)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    first: dict[tuple[str, str], int] = {}
    for index, (digest, group) in enumerate(zip(hashes, groups, strict=True)):
        for key in [("bytes", digest)] + ([("group", group)] if group else []):
            parent[root(index)] = root(first.setdefault(key, index))
    members: dict[int, list[int]] = {}
    for index in range(len(hashes)):
        members.setdefault(root(index), []).append(index)
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


def read_groups(path: str | Path, *, column: str = "group") -> Callable[[str], str | None]:
    """A function from an image's relative path to its group.

    Args:
        path: CSV with a header: the group's column, and ``image`` (a path, with slashes or backslashes) or ``id`` (a
            stem, or a file name). A path matches from its end, whichever folder it or the image's starts at: a row
            ``a/1.png`` is of ``site/a/1.png`` and not of ``b/1.png``. An empty group means none.
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
            length = [_parts_in_common(PurePosixPath(_name(image, key)), listed) for listed, _ in candidates]
            longest = max(1, *length)  # a row of another folder is of another image
            candidates = [candidate for candidate, n in zip(candidates, length, strict=True) if n == longest]
        groups = {group for _, group in candidates}
        if len(groups) > 1:
            hint = "give an 'image' column with folders in it"
            raise Refused([Problem(str(path), found=f"{sorted(groups)} for {image}", expected="one group", hint=hint)])
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
        hint = "give an 'image' column with paths, or an 'id' column with file names without their endings"
        raise Refused([Problem(str(path), found=found, expected=f"groups of images like {images[0]!r}", hint=hint)])
    return lacking


def _read(path: Path, column: str) -> tuple[str, list[tuple[str, str]]]:
    """The column that names images, and name and group of every row."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise Refused([Problem(str(path), found=str(error), expected="a CSV file", hint="check the path")]) from None
    header = list(rows[0][1]) if rows else []
    key = next((name for name in ("image", "id") if name in header), None)
    if column not in header or key is None:
        hint = "name the group's column with --group-column"
        expected = f"columns {column!r} and 'image' or 'id'"
        raise Refused([Problem(str(path), found=f"the columns {header}", expected=expected, hint=hint)])
    problems = Problems()
    for line, row in rows:
        if not row[key]:
            expected, hint = f"a name in the column {key!r}", "complete the row, or delete it"
            problems.add(f"{path}, line {line}", found="none", expected=expected, hint=hint)
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


def _parts_in_common(one: PurePosixPath, other: PurePosixPath) -> int:
    """How many parts the shorter of two paths of one stem has, all of them those of the other's end; 0 if not."""
    count = min(len(one.parts), len(other.parts))
    return count if one.parts[-count:-1] == other.parts[-count:-1] else 0
