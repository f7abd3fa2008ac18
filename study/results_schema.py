"""Writes ``docs/results-schema.md`` from the schema, so that both agree.

``python -m study.results_schema docs/results-schema.md``
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from samfed_monai.core.io import PUBLIC, write_text
from samfed_monai.results import RESULTS_SCHEMA

Schema = dict[str, Any]
_DEFINED: dict[str, Schema] = RESULTS_SCHEMA["$defs"]
_HEAD = """# results.json

For programs that read the results of a run.

```python
from samfed_monai.core.io import read_json
from samfed_monai.results import validate_results

results = read_json("runs/demo/results.json")
assert not validate_results(results)
results["sites"]["site-1"]["test"]["dice"], results["average"]["test"]["dice"], results["worst"]["test"]["site"]
```

Every run folder has this file, written when the last model has been evaluated. Its layout is version 1, a JSON Schema
in `samfed_monai/results/results.schema.json`; `python -m study.results_schema docs/results-schema.md` writes this page.

- A site's score is the mean over its images; **average** is the mean over all images of all sites, so that a large site
  counts for more; **worst** is the site with the lowest Dice.
- Both masks empty: Dice 1, HD95 0; one of them empty: Dice 0, HD95 the image's diagonal. `empty` counts such images.
- HD95 is MONAI's (the larger of the two directed 95th percentiles), in pixels at the evaluation size, unless
  `convention` says otherwise.
- `unseen` has hospitals that took no part in training; they count in no average. `networks` names every site's network,
  `exchange` what sites and server exchange.
- `models` has the model that was best on validation and the last one: the global one, or each site's own where sites
  keep one. `selected` names the one that the top level repeats. Rounds count from 0.
- Keys that are not listed may be added by later versions and should be ignored.

"""


def schema_markdown() -> str:
    """The page as Markdown; the same schema gives the same bytes."""
    lines = ["## Keys", "", "| key | type | meaning |", "| --- | --- | --- |"]
    lines += [f"| `{key}` | {kind} | {meaning} |" for key, kind, meaning in _rows(RESULTS_SCHEMA, "")]
    lines += ["", "## Scores", "", "Wherever the type above is *scores*:", ""]
    lines += ["| key | type | meaning |", "| --- | --- | --- |"]
    lines += [f"| `{key}` | {kind} | {meaning} |" for key, kind, meaning in _rows(_DEFINED["scores"], "")]
    return _HEAD + "\n".join(lines) + "\n"


def _rows(schema: Schema, prefix: str) -> Iterator[tuple[str, str, str]]:
    for name, below in schema.get("properties", {}).items():
        optional = "" if name in schema.get("required", ()) else " *(optional)*"
        yield from _row(f"{prefix}{name}", below, optional)


def _row(key: str, schema: Schema, optional: str = "") -> Iterator[tuple[str, str, str]]:
    name = schema.get("$ref", "").rpartition("/")[2]
    schema = _DEFINED[name] if name else schema
    if name in ("scores", "worst"):
        yield key, "scores" + (" and `site`, or null" if name == "worst" else ""), schema["description"] + optional
        return
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    yield key, " or ".join(kinds), schema["description"] + optional
    yield from _rows(schema, f"{key}.")
    if "additionalProperties" in schema:
        yield from _row(f"{key}.<name>", schema["additionalProperties"])
    if schema.get("items", {}).get("properties"):
        yield from _rows(schema["items"], f"{key}[].")


if __name__ == "__main__":
    write_text(sys.argv[1], schema_markdown(), mode=PUBLIC)
