"""The homogeneous baselines as a site runs them: both bundles take them, and they train what they say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from monai.bundle import ConfigWorkflow

from samfed_monai.config import check_bundle
from tests.methods import present

BUNDLES = Path(__file__).resolve().parents[2] / "bundles"
TERMS = {
    "mean_teacher": {"supervised", "consistency"},
    "unimatch": {"supervised", "unimatch"},
    "fedprox": {"supervised", "pseudo_label", "proximal", "reliability", "agreement"},
    "semifl": {"supervised", "pseudo_label", "mixup", "reliability", "agreement"},
}
GUIDES = {"mean_teacher": ["ema"], "unimatch": [], "fedprox": [], "semifl": ["global"]}
Build = Callable[..., ConfigWorkflow]


@pytest.mark.parametrize("bundle", ["samfed_skin", "samfed_polyp"])
@pytest.mark.parametrize("variant", present(*sorted(TERMS)))
def test_both_bundles_take_it(bundle: str, variant: str) -> None:
    assert check_bundle(BUNDLES / bundle, "train", variant=variant, ready=False) == []


@pytest.mark.parametrize("variant", present(*sorted(TERMS)))
def test_it_trains_its_terms_with_its_guides_and_no_other(build: Build, variant: str) -> None:
    workflow = build(variant)
    workflow.run()
    state = workflow.trainer.state
    assert set(state.term_means) == TERMS[variant]
    assert state.guide_names == GUIDES[variant]
    assert "teacher" not in state.guidance.batch  # no SAM
    assert workflow.parser["teacher_adapt"] == "off"
