"""Groups (sequence, patient, lesion) of images, out of a CSV file."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from samfed_monai.data.checks import stem
from samfed_monai.errors import Problem, Refused


def read_groups(path: str | Path, *, column: str = "group") -> Callable[[str], str | None]:
    """A function from an image's relative path to its group.

    Args:
        path: CSV with a header: the group's column, and ``image`` (a path) or ``id`` (a stem). Paths match from their
            ends, so it does not matter which folder they start at; an empty group means none.
        column: name of the group's column (``lesion_id``, ``patient`` ...).

    Raises:
        Refused: no such file or column, or (when asked) a path that two rows of different groups match equally well.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError) as error:
        raise Refused([Problem(str(path), found=str(error), expected="a CSV file", mend="check the path")]) from None
    header = list(rows[0]) if rows else []
    key = next((name for name in ("image", "id") if name in header), None)
    if column not in header or key is None:
        mend = "name the group's column with --group-column"
        expected = f"columns {column!r} and 'image' or 'id'"
        raise Refused([Problem(str(path), found=f"the columns {header}", expected=expected, mend=mend)])
    by_stem: dict[str, list[tuple[PurePosixPath, str]]] = {}
    for row in rows:
        by_stem.setdefault(stem(row[key]), []).append((PurePosixPath(row[key]), row[column] or ""))

    def group_of(image: str) -> str | None:
        candidates = by_stem.get(stem(image), [])
        if key == "image" and candidates:
            length = [_common_end(PurePosixPath(image), listed) for listed, _ in candidates]
            candidates = [candidate for candidate, n in zip(candidates, length, strict=True) if n == max(length)]
        groups = {group for _, group in candidates}
        if len(groups) > 1:
            mend = "give an 'image' column with folders in it"
            raise Refused([Problem(str(path), found=f"{sorted(groups)} for {image}", expected="one group", mend=mend)])
        return (groups.pop() or None) if groups else None

    return group_of


def _common_end(one: PurePosixPath, other: PurePosixPath) -> int:
    count = 0
    for left, right in zip(reversed(one.parts), reversed(other.parts), strict=False):
        if left != right:
            break
        count += 1
    return count
