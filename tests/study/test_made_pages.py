"""Generated pages of the docs: methods, tables of options, and the results' schema."""

import re
from pathlib import Path

import pytest

from samfed_monai.config import find_bundle, known_variants
from samfed_monai.config.options import option_tables
from samfed_monai.config.variants import methods
from samfed_monai.core.errors import Refused
from study.methods_page import methods_page
from study.options_page import options_page
from study.results_schema import schema_markdown

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_methods_page_matches_declarations():
    now, page = methods_page(methods().values()), (DOCS / "methods.md").read_text(encoding="utf-8")
    top, *sections = re.split(r"(?m)^(?=### )", page)
    installed = known_variants()
    row = re.compile(r"\| \[`(\w+)`\]")
    lines = top.splitlines(keepends=True)
    top = "".join(line for line in lines if (found := row.match(line)) is None or found[1] in installed)
    sections = [text for text in sections if text.partition("`")[2].partition("`")[0] in installed]
    declared_alone = re.sub(r"(?m)^- \*Measured\*: .*\n", "", "".join([top, *sections]))
    declared_alone = re.sub(r"(?s)## Which one for you.*?(?=## )", "", declared_alone)  # figures of records, too
    assert declared_alone == now, "run `make related-page`"


def test_option_tables_match_source():
    text = (DOCS / "options.md").read_text(encoding="utf-8")
    bundles = [find_bundle("samfed_skin"), find_bundle("samfed_polyp")]
    assert options_page(text, bundles) == text, "run `python -m study options docs/options.md`"
    assert text.count("<!-- end -->") == sum(len(tables) for tables in option_tables().values())
    assert options_page(text.replace("| federated rounds |", "| rounds |"), bundles) == text


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("# Options\n", "no place for a table"),
        ("<!-- train.json: place -->\n<!-- end -->\n", r"<!-- train\.json: place -->"),
    ],
)
def test_page_without_option_tables_is_refused(text, found):
    with pytest.raises(Refused, match=rf"one of <!-- federate\.json: \w+ -->, .*, found {found}"):
        options_page(text, [find_bundle("samfed_skin")])


def test_results_schema_page_matches_schema():
    hint = "run `python -m study.results_schema docs/results-schema.md`"
    assert (DOCS / "results-schema.md").read_text(encoding="utf-8") == schema_markdown(), hint
