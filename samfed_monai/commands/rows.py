"""Rows of a comparison that are more than a variant: a variant with overrides, a name and a note, from a JSON file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from samfed_monai.config.overrides import normal_ids
from samfed_monai.errors import Problems, Refused, did_you_mean
from samfed_monai.io import read_json
from samfed_monai.reports.variant_names import VARIANTS

ROW_KEYS = ("variant", "title", "note", "setting", "as", "overrides")
ROLES = ("dp_only", "oracle")
FILE_KEYS = ("title", "setting", "overrides", "rows")
PER_COMPARISON = ("bundle_root", "datalist", "data_root", "output_dir", "cache_dir", "rounds", "seed", "variant")
"""Ids that a row cannot set: the comparison gives them to all of its rows alike, or the row has a key for it."""

RESERVED = ("cache", "figures", "teacher")
"""Names of folders that a comparison writes, and of the row that it makes itself."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")


@dataclass(frozen=True)
class NamedRow:
    """One row of a comparison before it has run.

    Args:
        name: unique; the folder of its runs.
        variant: which variant it runs.
        overrides: ids of ``federate.json`` and values, on top of the command line's.
        title: what tables call it; empty for the variant's own title.
        note: a sentence below the table.
        setting: rows of one setting share ``dp_only`` and ``oracle``; empty for the setting of the variants.
        sweep: title of the file that the row is from.
        role: ``dp_only`` or ``oracle`` (``as`` in the file) for a row that is its setting's floor or ceiling though
            its variant has another name; empty for any other.
    """

    name: str
    variant: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    title: str = ""
    note: str = ""
    setting: str = ""
    sweep: str = ""
    role: str = ""

    def about(self, place: int) -> dict[str, Any]:
        """What a run's ``compare.json`` says of its row, for reports."""
        told = {name: getattr(self, name) for name in ("title", "note", "setting", "sweep")}
        made = {"row": self.name, "variant": self.variant, "place": place, "overrides": dict(self.overrides)}
        told["as"] = self.role
        return {**made, **{name: text for name, text in told.items() if text}}


def read_rows(path: str | Path) -> list[NamedRow]:
    """Rows of a file, in its order.

    Overrides at the top of the file belong to all of its rows. Keys that begin with ``_`` are notes to the reader.
    Whether a variant exists and an id is spelt right is the bundle's check, which ``samfed compare`` makes of each row.

    Args:
        path: a JSON file.

    Raises:
        Refused: it is not such a file; every departure is listed.

    Example::

        {"title": "Agreement rule",
         "rows": {"samfed": {"variant": "samfed"},
                  "intersection": {"variant": "samfed", "note": "labels where both agree",
                                   "overrides": {"client#agreement#rule": "intersection"}}}}
    """
    where, problems = Path(path).name, Problems()
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("rows"), dict) or not content["rows"]:
        mend = 'for instance {"rows": {"intersection": {"variant": "samfed", "overrides": {}}}}'
        problems.add(where, found=type(content).__name__, expected="an object with `rows`, by name", mend=mend)
        raise Refused(problems)
    _check(content, FILE_KEYS, where, problems)
    shared = _overrides(content, where, problems)
    rows = []
    for name, row in content["rows"].items():
        here = f"{where} -> rows#{name}"
        if not _NAME.fullmatch(name) or name in RESERVED:
            expected = f"a name of letters, digits and `_.+-`, none of {', '.join(RESERVED)}"
            problems.add(here, found=repr(name), expected=expected, mend="it becomes a folder")
        if not isinstance(row, dict):
            problems.add(here, found=type(row).__name__, expected="an object with `variant`")
            continue
        _check(row, ROW_KEYS, here, problems)
        if "variant" not in row:
            problems.add(f"{here}#variant", found="no such key", expected="name of a variant, for instance samfed")
        texts = {key: row[key] for key in ("title", "note", "setting") if isinstance(row.get(key), str)}
        texts = {**({"setting": content["setting"]} if isinstance(content.get("setting"), str) else {}), **texts}
        if row.get("as", ROLES[0]) not in ROLES:
            problems.add(f"{here}#as", found=repr(row["as"]), expected=" or ".join(ROLES))
        overrides = {**shared, **_overrides(row, here, problems)}
        sweep, role = str(content.get("title", "")), str(row.get("as", ""))
        rows.append(NamedRow(name, str(row.get("variant", "")), overrides, sweep=sweep, role=role, **texts))
    problems.refuse_if_any()
    return rows


def all_rows(variants: Sequence[str], rows: Iterable[NamedRow], problems: Problems) -> list[NamedRow]:
    """Rows of ``--variants`` and of the files together; a name that stands for two things is a problem.

    Args:
        variants: names of variants, which are rows without overrides.
        rows: rows of all files.
        problems: takes what is wrong.
    """
    found: dict[str, NamedRow] = {}
    for row in [*(NamedRow(variant, variant) for variant in variants), *rows]:
        where = f"rows -> {row.name}"
        if row.name in VARIANTS and row.variant != row.name:
            expected = f"the variant of that name, or another name than {row.name!r}"
            problems.add(where, found=f"variant {row.variant!r}", expected=expected)
        if row.name in found and row != found[row.name]:
            same = _same_run(row, found[row.name])
            if not same:
                problems.add(where, found="two rows of that name", expected="each name once", mend="rename one")
            row = row if same else found[row.name]
        found[row.name] = row
    return list(found.values())


def _same_run(row: NamedRow, other: NamedRow) -> bool:
    """Whether two rows are one run told twice, for instance the default row in the files of two sweeps."""
    mine, others = ((r.variant, r.overrides, r.setting, r.role) for r in (row, other))
    return mine == others


def _check(content: Mapping[str, Any], keys: Sequence[str], where: str, problems: Problems) -> None:
    for key, value in content.items():
        if key.startswith("_"):
            continue
        if key not in keys:
            expected = f"one of {', '.join(keys)}"
            problems.add(f"{where}#{key}", found="an unknown key", expected=expected, mend=did_you_mean(key, keys))
        elif key not in ("rows", "overrides", "as") and not isinstance(value, str):
            problems.add(f"{where}#{key}", found=f"{value!r} ({type(value).__name__})", expected="text")


def _overrides(content: Mapping[str, Any], where: str, problems: Problems) -> dict[str, Any]:
    given = content.get("overrides", {})
    if not isinstance(given, dict):
        expected = 'ids and values, for instance {"client#agreement#tau": 0.8}'
        problems.add(f"{where}#overrides", found=type(given).__name__, expected=expected)
        return {}
    overrides = normal_ids(given)
    for key in overrides.keys() & set(PER_COMPARISON):
        expected = "ids in which rows may differ"
        mend = (
            "it is given once, for all rows: on the command line" if key != "variant" else "it is the row's `variant`"
        )
        problems.add(f"{where}#overrides#{key}", found="set by a row", expected=expected, mend=mend)
    return {key: value for key, value in overrides.items() if not key.startswith("_")}
