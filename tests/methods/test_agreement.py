"""The variants of the agreement say in their file what their name says."""

from __future__ import annotations

from pathlib import Path

import pytest

from samfed_monai.config import check_bundle, variant_files
from samfed_monai.federation.workflow import client_config
from samfed_monai.reports.rows import ABLATIONS, NOTES, VARIANTS
from tests.methods import present

BUNDLES = Path(__file__).resolve().parents[2] / "bundles"
EXPECTED = {
    "samfed": ("trusted_average", "global", True),
    "confidence_selection": ("confidence", "weak", True),
    "no_agreement": ("teacher", "strong", False),
}


@pytest.mark.parametrize("bundle", ["samfed_skin", "samfed_polyp"])
@pytest.mark.parametrize("variant", present(*EXPECTED))
def test_rule_and_factor_of_each(bundle: str, variant: str) -> None:
    assert check_bundle(BUNDLES / bundle, "train", variant=variant, ready=False) == []
    content = client_config(BUNDLES / bundle, variant, {}).content()
    agreement = content["agreement"]
    assert (agreement["rule"], agreement["student"], content["terms"]["sam_kd"]["adaptive"]) == EXPECTED[variant]


SOFT, HARD, SELF = ("soft", "constant"), ("hard", "constant"), ("hard", "gaussian_ramp")
LABELS = {
    "samfed": SOFT,
    "heterogeneous": SOFT,
    "oracle": SOFT,
    "no_sam": SELF,
    "fedprox": SELF,
    "hssf": SELF,
    "semifl": HARD,
}


@pytest.mark.parametrize("variant", present(*LABELS))
def test_labels_are_soft_where_somebody_else_gives_them_and_hard_and_ramped_where_they_are_a_sites_own(
    variant: str,
) -> None:
    term = client_config(BUNDLES / "samfed_polyp", variant, {}).content()["terms"]["pseudo_label"]
    assert (term["labels"], term["schedule"]) == LABELS[variant]
    assert term["loss"] == "structure"


@pytest.mark.parametrize("name", present("confidence_selection", "no_agreement"))
def test_they_are_ablations_with_a_title_and_a_note_and_no_rivals_of_sam_fed(name: str) -> None:
    assert variant_files(BUNDLES / "samfed_skin", name)
    assert name in ABLATIONS
    assert name in VARIANTS
    assert name in NOTES
    assert ("factor g" in VARIANTS[name]) is (name == "no_agreement")
