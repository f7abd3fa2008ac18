"""Parses the ``--key value`` pairs that override a bundle's ids, on the command lines of ``samfed`` and MONAI."""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samfed_monai.config.parse import join_id, split_id
from samfed_monai.core.errors import Problem, Refused, refused
from samfed_monai.core.io import TooDeep, parse_json, read_json
from samfed_monai.core.validators import require

MONAI_OPTIONS = frozenset(
    {
        *("config_file", "meta_file", "logging_file", "args_file", "properties_path"),
        *("run_id", "init_id", "final_id", "tracking", "workflow_type", "workflow_name"),
    }
)
"""Options of ``monai.bundle run`` itself; all others override ids."""


@dataclass(frozen=True)
class MonaiCommand:
    """A parsed command line of ``python -m monai.bundle run``.

    Args:
        overrides: ids and values.
        config_files: the config files.
        typed: the values by id, as typed on the command line.
    """

    overrides: dict[str, Any]
    config_files: list[Path]
    typed: dict[str, str]


def started_by_monai(argv: Sequence[str] | None = None) -> bool:
    """Whether this process is ``python -m monai.bundle ...``."""
    argv = sys.argv if argv is None else argv
    return bool(argv) and Path(argv[0]).as_posix().endswith("monai/bundle/__main__.py")


def monai_command(argv: Sequence[str] | None = None) -> MonaiCommand | None:
    """Parses the command line as MONAI does, with ``fire``; ``None`` if MONAI did not start the process."""
    argv = sys.argv if argv is None else argv
    if not started_by_monai(argv):
        return None
    from fire.parser import DefaultParseValue  # a Python literal if possible, else text

    pairs = dict(parse_pairs(argv[1:], DefaultParseValue, read_key=fire_key))
    if isinstance(pairs.get("args_file"), str):
        with suppress(Refused):  # MONAI also reads YAML, and reports unreadable files itself
            pairs = {**read_json(pairs["args_file"]), **pairs}
    files = pairs.get("config_file") or []
    if isinstance(files, str):
        files = [files] if Path(files).is_file() else files.split(",")
    overrides = {key: value for key, value in pairs.items() if key not in MONAI_OPTIONS and value is not None}
    typed = dict(parse_pairs(argv[1:], str, read_key=fire_key))
    return MonaiCommand(overrides, [Path(str(name).strip()) for name in files], typed)


def fire_key(text: str) -> str:
    """Returns an id as ``fire`` reads it: hyphens become underscores, even in the name of a site."""
    return text.replace("-", "_")


def samfed_key(text: str) -> str:
    """Returns an id as ``samfed`` reads it: ``learning-rate`` becomes ``learning_rate``.

    Names of sites are kept, as in ``sites#site-1#network``: they come from the data list.
    """
    parts = re.split("(#|::)", text)
    site_index = 2 if parts[0] == "sites" else None  # parts[1] is the separator
    return "".join(part if index == site_index else fire_key(part) for index, part in enumerate(parts))


def parse_pairs(
    words: Sequence[str],
    read_value: Callable[[str], Any],
    stray: list[str] | None = None,
    *,
    read_key: Callable[[str], str] = samfed_key,
) -> list[tuple[str, Any]]:
    """Parses ``--key value``, ``--key=value`` and a bare ``--key`` (true); other words are added to ``stray``."""
    pairs, expects_value = list[tuple[str, Any]](), False  # whether the value of the last key may come next
    for word in words:
        if word.startswith("--") or re.match(r"-[a-zA-Z]", word):
            key, equals, text = word.lstrip("-").partition("=")
            pairs.append((read_key(key), read_value(text) if equals else True))
            expects_value = not equals
        elif expects_value:
            pairs[-1], expects_value = (pairs[-1][0], read_value(word)), False
        elif stray is not None:
            stray.append(word)
    return pairs


def overrides_of(words: Sequence[str]) -> dict[str, Any]:
    """Returns the overrides in the remaining words of a command line, with ids written as ``a#b``.

    Raises:
        Refused: a word that belongs to no ``--key``, an id that :func:`normal_ids` refuses, or a value that a later one
            of the same id, or of an id around it, would replace.
    """
    stray: list[str] = []
    pairs = parse_pairs(words, samfed_value, stray)
    expected = "`--key value` pairs after the command's own arguments"
    problems = [Problem("command line", found=repr(word), expected=expected) for word in stray]
    ids = [split_id(key) for key, _ in pairs]
    for place, parts in enumerate(ids):
        if later := next((each for each in ids[place + 1 :] if parts[: len(each)] == each), None):
            found, hint = f"--{join_id(later)} after it, which replaces it", "leave one out"
            problems.append(Problem(f"command line -> {join_id(parts)}", found, "one value of an id", hint))
    for name in {parts[0] for parts in ids} & {"bundle_root", "initialize", "run", "finalize"}:
        expected = "no such option: the command's own argument names the bundle, whose files define the steps"
        problems.append(Problem(f"command line -> {name}", "an option", expected, "leave it out"))
    require(problems)
    return normal_ids(dict(pairs))


def samfed_value(text: str) -> Any:
    """Parses a value as JSON (``true``, ``null``, ``[1, 2]``) or a Python literal; anything else is text.

    Literals that JSON cannot represent, such as sets or infinity, are text, since a run's values are stored as JSON.
    """
    for parse in (parse_json, ast.literal_eval):
        try:
            value = parse(text)
            json.dumps(value, allow_nan=False)
            return value
        except TooDeep as error:
            raise refused("command line", found=str(error), expected="objects and lists with fewer levels") from None
        except (ValueError, SyntaxError, MemoryError, TypeError, RecursionError):
            continue
    return text


def normal_ids(overrides: dict[str, Any]) -> dict[str, Any]:
    """Returns the overrides with ids written as ``a#b``, also those given as ``a::b``.

    Raises:
        Refused: an id that starts with ``+``, since MONAI merges values of files only.
    """
    expected, hint = "an id without a leading +", "set each id inside it separately: --a#b 1 keeps the rest of a"
    require(Problem("override", repr(key), expected, hint) for key in overrides if key.startswith("+"))
    return {"#".join(split_id(key)): value for key, value in overrides.items()}
