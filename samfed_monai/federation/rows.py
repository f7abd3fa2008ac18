"""Rows of a comparison: a variant each, or a variant with overrides from a file of rows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from samfed_monai.config.overrides import normal_ids
from samfed_monai.core.errors import Problems
from samfed_monai.core.io import read_json
from samfed_monai.core.json_schema import departures

ROLES = ("dp_only", "oracle")
PER_COMPARISON = ("bundle_root", "datalist", "data_root", "output_dir", "cache_dir", "rounds", "seed", "variant")
"""Ids that a row cannot set: the comparison gives them to all of its rows alike, or the row has a key for it."""
RESERVED = ("cache", "figures", "teacher")
"""Names of folders that a comparison writes, and of the row that it makes itself."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")
_TEXT = {"type": "string"}
_IDS = {"type": "object"}
SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "required": ["rows"],
    "properties": {
        **{"title": _TEXT, "setting": _TEXT, "overrides": _IDS},
        "rows": {
            "description": 'rows by name, for instance {"average": {"variant": "samfed", "overrides": {}}}',
            "type": "object",
            "additionalProperties": {
                "type": "object",
                "required": ["variant"],
                "properties": {
                    "variant": {**_TEXT, "description": "name of a variant, for instance samfed"},
                    **{"title": _TEXT, "note": _TEXT, "setting": _TEXT, "as": {"enum": ROLES}, "overrides": _IDS},
                },
                "additionalProperties": False,
            },
        },
    },
    "additionalProperties": False,
}
"""Of a file of rows, without its notes."""


@dataclass(frozen=True)
class NamedRow:
    """One row of a comparison before it has run.

    Args:
        name: unique; the folder of its runs.
        variant: which variant it runs.
        overrides: ids of ``federate.json`` and ``train.json``, and values, on top of the command line's.
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
        """What a run's ``compare.json`` records of its row, for reports."""
        texts = {name: getattr(self, name) for name in ("title", "note", "setting", "sweep")} | {"as": self.role}
        made = {"row": self.name, "variant": self.variant, "place": place, "overrides": dict(self.overrides)}
        return made | {name: text for name, text in texts.items() if text}

    def same_run(self, other: NamedRow) -> bool:
        """Whether two rows are one run, for instance the default row in the files of two sweeps."""
        mine, others = ((row.variant, row.overrides, row.setting, row.role) for row in (self, other))
        return mine == others


def read_rows(path: str | Path) -> list[NamedRow]:
    """Rows of a file, in its order.

    Overrides at the top of the file belong to all of its rows. Keys that begin with ``_`` are notes to the reader.
    Whether a variant exists and an id is spelt right is the bundle's check, which ``samfed compare`` makes of each row.

    Args:
        path: a JSON file.

    Raises:
        Refused: it departs from :data:`SCHEMA`; a name that is no folder's; an id of the whole comparison in a row.

    Example::

        {"title": "Agreement rule",
         "rows": {"samfed": {"variant": "samfed"},
                  "average": {"variant": "samfed", "note": "the mean of the two probabilities",
                              "overrides": {"agreement#rule": "average"}}}}
    """
    where, problems = Path(path).name, Problems()
    content = _without_notes(read_json(path))
    given = content.get("rows") if isinstance(content, dict) else None
    rows = {name: _without_notes(row) for name, row in given.items()} if isinstance(given, dict) else {}
    problems.extend(departures({**content, "rows": rows} if isinstance(given, dict) else content, SCHEMA, where))
    if given == {}:
        problems.add(f"{where} -> rows", found="none", expected="at least one row")
    for name in rows:
        if not _NAME.fullmatch(name) or name in RESERVED:
            expected = f"a name of letters, digits and `_.+-`, none of {', '.join(RESERVED)}"
            problems.add(f"{where} -> rows#{name}", found=repr(name), expected=expected, hint="it becomes a folder")
    for place, part in {where: content, **{f"{where} -> rows#{name}": row for name, row in rows.items()}}.items():
        for key in sorted(_overrides(part).keys() & set(PER_COMPARISON)):
            hint = "it is the row's `variant`" if key == "variant" else "give it once, on the command line"
            expected = "ids in which rows may differ"
            problems.add(f"{place}#overrides#{key}", found="set by a row", expected=expected, hint=hint)
    problems.refuse_if_any()
    shared, sweep, setting = _overrides(content), content.get("title", ""), content.get("setting", "")
    return [
        NamedRow(
            name,
            row["variant"],
            {**shared, **_overrides(row)},
            title=row.get("title", ""),
            note=row.get("note", ""),
            setting=row.get("setting", setting),
            sweep=sweep,
            role=row.get("as", ""),
        )
        for name, row in rows.items()
    ]


def all_rows(variants: Sequence[str], rows: Iterable[NamedRow], problems: Problems) -> list[NamedRow]:
    """Rows of ``--variants`` and of the files together; a name with two meanings is a problem.

    Args:
        variants: names of variants, which are rows without overrides.
        rows: rows of all files.
        problems: takes what is wrong.
    """
    from samfed_monai.reports.rows import VARIANTS

    found: dict[str, NamedRow] = {}
    for row in [*(NamedRow(variant, variant) for variant in variants), *rows]:
        where = f"rows -> {row.name}"
        if row.name in VARIANTS and row.variant != row.name:
            expected = f"the variant of that name, or another name than {row.name!r}"
            problems.add(where, found=f"variant {row.variant!r}", expected=expected)
        if row.name in found and not row.same_run(found[row.name]):
            problems.add(where, found="two rows of that name", expected="each name once", hint="rename one")
        else:
            found[row.name] = row
    return list(found.values())


def _without_notes(content: Any) -> Any:
    return {key: value for key, value in content.items() if key[:1] != "_"} if isinstance(content, dict) else content


def _overrides(part: Any) -> dict[str, Any]:
    given = part.get("overrides") if isinstance(part, dict) else None
    overrides: dict[str, Any] = _without_notes(normal_ids(given)) if isinstance(given, dict) else {}
    return overrides
