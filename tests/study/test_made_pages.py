"""Pages of the docs that are made from what the package declares: the methods, and the tables of options."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from samfed_monai.config import find_bundle, known_variants
from samfed_monai.config.options import option_tables
from samfed_monai.config.variants import LABELS, declared, methods
from samfed_monai.core.errors import Refused
from study.methods_page import methods_page
from study.options_page import options_page
from tests.methods import present

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_page_of_methods_is_made_of_their_declarations():
    now, page = methods_page(methods().values()), (DOCS / "methods.md").read_text(encoding="utf-8")
    top, *sections = re.split(r"(?m)^(?=### )", page)
    installed = known_variants()
    top = "".join(line for line in top.splitlines(keepends=True) if row_of(line) in (None, *installed))
    sections = [text for text in sections if text.partition("`")[2].partition("`")[0] in installed]
    declared_alone = re.sub(r"(?m)^- \*Measured\*: .*\n", "", "".join([top, *sections]))
    declared_alone = re.sub(r"(?s)## Which one for you.*?(?=## )", "", declared_alone)  # figures of records, too
    assert declared_alone == now, "run `make related-page`"


def row_of(line):
    """The method of a row of the table, else ``None``."""
    found = re.match(r"\| \[`(\w+)`\]", line)
    return found and found[1]


def test_the_page_says_what_a_method_needs_infers_and_was_measured():
    found = methods()
    text = methods_page([found["no_sam"], found["supervised"], found["oracle"]], {"no_sam": "Dice 0.5"})
    assert (
        "- *Needs*: public images with masks; no label of a site's own.\n- *Leaves a site*: weights, scores.\n" in text
    )
    assert "- *Inferred*: confidence by pixel, tau 0.9" in text
    assert text.count("- *Measured*: ") == 1
    assert "- *Measured*: Dice 0.5.\n" in text
    assert "masks of a site's own images; public ones only for a warm start, if there are any." in text
    oracle = text.partition("### `oracle`")[2]
    assert "- *Needs*: public images with masks; masks of a site's own images.\n" in oracle
    assert "Inferred" not in oracle


@pytest.mark.parametrize("name", present("weak_labels", "fedicra", "see"))
def test_the_page_says_that_weak_labels_will_do_where_they_will(name):
    method = declared(None, name)
    text = methods_page([method])
    assert f"- *Needs*: {LABELS['weak']}; public ones only for a warm start, if there are any.\n" in text
    assert f"| {method.note} | weights | weak | {'one' if name == 'see' else 'several'} |\n" in text
    assert f"labels | `weak` | {LABELS['weak']} |" in text


def test_the_tables_of_options_are_those_of_the_source():
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
def test_a_page_that_has_no_table_of_ours_is_refused(text, found):
    with pytest.raises(Refused, match=rf"one of <!-- federate\.json: \w+ -->, .*, found {found}"):
        options_page(text, [find_bundle("samfed_skin")])
