"""Where a variant's file is: the bundle's own before the package's."""

from __future__ import annotations

import json

import pytest

from samfed_monai.cli.main import main
from samfed_monai.config import check_bundle, find_bundle, find_variant, known_variants
from samfed_monai.config.variants import LAST, PACKAGED, own_variants, read_method
from samfed_monai.core.errors import Refused
from samfed_monai.federation.workflow import client_config

from .conftest import Write


def test_the_packages_variants_and_the_bundles_own_are_known(bundle):
    assert own_variants(bundle) == ["gentle"]
    assert known_variants(bundle) == sorted([*known_variants(), "gentle"])
    assert {"samfed", "dp_only", "no_sam", "oracle"} <= set(known_variants())
    assert find_variant(bundle, "no_sam") == find_variant(None, "no_sam") == PACKAGED / "no_sam.json"


def test_the_bundles_own_variant_replaces_the_packages(bundle, rewrite: Write):
    own = rewrite("variants/no_sam.json", json.dumps({"_note": "ours", "rate": 0.3}))
    assert find_variant(bundle, "no_sam") == own
    assert read_method(own).note == "ours"
    assert check_bundle(bundle, "train", variant="no_sam") == []


@pytest.mark.parametrize("name", ["no_sma", "../../train", "", None])
def test_an_unknown_variant_is_refused_with_all_names(bundle, name):
    with pytest.raises(Refused, match=r"variant: expected one of \[.*'dp_only', .*'gentle', .*'samfed'"):
        find_variant(bundle, name)
    with pytest.raises(Refused, match="found 'no_sma'; did you mean 'no_sam'"):
        find_variant(None, "no_sma")


@pytest.mark.parametrize("name", known_variants())
def test_every_variant_of_the_package_says_what_it_is(name):
    method = read_method(find_variant(None, name))
    assert len(method.note) > 15
    assert len(method.title) > 2
    assert method.place < LAST


def test_the_command_lists_names_and_notes_and_says_where_a_file_is(bundle, rewrite: Write, capsys):
    rewrite("variants/gentle.json", json.dumps({"_note": "A softer start."}))
    assert main(["variants", str(bundle)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == known_variants(bundle)
    assert any(line.split(maxsplit=1) == ["gentle", "A softer start."] for line in lines)
    assert main(["variants", str(bundle), "--path", "gentle"]) == 0
    assert capsys.readouterr().out == f"{bundle / 'configs' / 'variants' / 'gentle.json'}\n"
    assert main(["variants", "--path", "oracle"]) == 0
    assert capsys.readouterr().out == f"{PACKAGED / 'oracle.json'}\n"


def test_a_package_s_variant_that_does_not_fit_a_bundle_is_told_and_only_refused_when_asked_for(bundle, capsys):
    assert main(["check", str(bundle)]) == 0
    said = capsys.readouterr().out
    assert "toy: no problems in train; variants: gentle, samfed\n" in said
    assert "the package's variant no_sam does not fit this bundle: no_sam.json -> " in said
    assert main(["check", str(bundle), "--variant", "no_sam"]) == 2
    assert "no_sam.json -> teacher_adapt: expected an id that this workflow has" in capsys.readouterr().err


@pytest.mark.parametrize("variant", known_variants())
def test_knobs_reach_the_optimizer_and_the_batches_of_every_variant(variant):
    """A variant sets a knob, not what lies behind it, so that the command line goes before it."""
    parser = client_config(find_bundle("samfed_skin"), variant, {"learning_rate": 0.5, "batch_size": 7}).parser()
    assert parser.get_parsed_content("optimizer#lr") == 0.5
    readers = ["train#dataloader", "unlabelled#dataloader", "validate#dataloader", "test#dataloader", "steps"]
    for place in [*readers, *(["sharing"] if "sharing#batch_size" in parser else [])]:
        assert parser.get_parsed_content(f"{place}#batch_size") == 7, place
