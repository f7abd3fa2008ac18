from __future__ import annotations

from pathlib import Path

from study.results_schema import schema_markdown

PAGE = Path(__file__).parents[2] / "docs" / "results-schema.md"


def test_the_page_is_the_schema_s():
    hint = "run `python -m study.results_schema docs/results-schema.md`"
    assert PAGE.read_text(encoding="utf-8") == schema_markdown(), hint


def test_the_page_names_units_and_every_level():
    page = schema_markdown()
    for row in (
        "| `traffic.up_bytes` | integer | site to server, bytes |",
        "| `seconds.soft_masks` | number | soft masks, seconds |",
        "| `sites.<name>.test` | scores | scores of a set of images |",
        "| `skipped[].reason` | string | why |",
        "| `empty.both` | integer or null | label and prediction empty: Dice 1, HD95 0 |",
    ):
        assert row in page
