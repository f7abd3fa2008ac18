"""A frozen list is not replaced by another: a file that is there stays, and must hold what is to be written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from samfed_monai.data.datalist import DataList
from samfed_monai.errors import Problem, Problems, Refused

MEND = "choose another name, or delete it"


def require_free(path: str | Path, *, name: str) -> None:
    """What can be said of an output before any image was read: it is not there, or a list of that name.

    Args:
        path: the data list to write.
        name: what the list will be called; one of another name is another list.

    Raises:
        Refused: another file, or another list, is in the way.
    """
    there = _there(path)
    if there is not None and there.name != name:
        expected = f"no file, or the list {name!r}"
        raise Refused([Problem(str(path), found=f"the list {there.name!r}", expected=expected, mend=MEND)])


def freeze(lists: Mapping[Path, DataList]) -> None:
    """Writes data lists; a file that holds the same list stays as it is, byte for byte.

    Args:
        lists: by the file to write.

    Raises:
        Refused: with every file that holds something else; then nothing is written.
    """
    problems = Problems()
    missing = []
    for path, datalist in lists.items():
        with problems.collected():
            there = _there(path)
            if there is None:
                missing.append(path)
            elif there.hash != datalist.hash:
                found = f"another data list, {there.name!r} ({there.hash[:12]})"
                expected = f"no file, or the very list to be written ({datalist.hash[:12]})"
                problems.add(str(path), found=found, expected=expected, mend=MEND)
    problems.refuse_if_any()
    for path in missing:
        lists[path].save(path)


def _there(path: str | Path) -> DataList | None:
    if not Path(path).exists():
        return None
    try:
        return DataList.load(path)
    except Refused as refused:
        first = refused.problems[0]
        found = f"something else ({first.where}: {first.found})"
        raise Refused([Problem(str(path), found=found, expected="no file, or a data list", mend=MEND)]) from refused
