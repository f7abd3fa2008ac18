from __future__ import annotations

from pathlib import Path

from study.results_schema import schema_markdown

PAGE = Path(__file__).parents[2] / "docs" / "results-schema.md"


def test_the_page_is_the_schema_s():
    hint = "run `python -m study.results_schema docs/results-schema.md`"
    assert PAGE.read_text(encoding="utf-8") == schema_markdown(), hint
