"""The JSON Schema of ``results.json`` (``results.schema.json``), and a check that lists every departure from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from samfed_monai.core.errors import Problem
from samfed_monai.core.io import read_json
from samfed_monai.core.validators import departures

RESULTS_SCHEMA: dict[str, Any] = read_json(Path(__file__).with_name("results.schema.json"))
_PROPERTIES = RESULTS_SCHEMA["properties"]
SCHEMA_VERSION: int = _PROPERTIES["schema"]["enum"][0]
SPLITS = ("validation", "test")
TIMES = tuple(_PROPERTIES["seconds"]["properties"])


def validate_results(results: Any, *, where: str = "results.json") -> list[Problem]:
    """Every departure from :data:`RESULTS_SCHEMA`, each with its place; an empty list when there is none.

    Unknown keys are allowed, so that a run may record more than this version knows.

    Args:
        results: content of a ``results.json``.
        where: file name for the messages.
    """
    problems = departures(results, RESULTS_SCHEMA, where)
    if problems:
        return problems
    if results["selected"] not in results["models"]:
        found, names = repr(results["selected"]), sorted(results["models"])
        problems.append(Problem(f"{where} -> selected", found=found, expected=f"one of the models {names}"))
    for name in sorted(results.get("unseen", {}).keys() & results["sites"].keys()):
        expected = "a hospital that is no site of the training"
        problems.append(Problem(f"{where} -> unseen#{name}", found="a site of the same name", expected=expected))
    return problems
