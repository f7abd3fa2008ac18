"""The homogeneous baselines as a site runs them: both bundles take them, and they train what they say."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import monai
import pytest
import torch
from monai.bundle import ConfigWorkflow

from samfed_monai.config import check_bundle, variant_files
from samfed_monai.data import render_synthetic

BUNDLES = Path(__file__).resolve().parents[2] / "bundles"
TERMS = {
    "mean_teacher": {"supervised", "consistency"},
    "unimatch": {"supervised", "unimatch"},
    "fedprox": {"supervised", "pseudo_label", "proximal", "reliability", "agreement"},
    "semifl": {"supervised", "pseudo_label", "mixup", "reliability", "agreement"},
}
GUIDES = {"mean_teacher": ["ema"], "unimatch": [], "fedprox": [], "semifl": ["global"]}
Build = Callable[..., ConfigWorkflow]


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    before = monai.data.get_track_meta()
    torch.set_num_threads(1)
    yield
    monai.data.set_track_meta(before)


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """The skin bundle's trainer with a variant, on two small synthetic sites."""
    folder = tmp_path_factory.mktemp("sites")
    counts = {"images_per_site": 6, "public": 4, "validation": 2, "test": 2, "size": (64, 64)}
    listed = render_synthetic(folder / "images", sites=2, **counts)  # type: ignore[arg-type]
    listed.save(folder / "list.json")
    bundle = BUNDLES / "samfed_skin"

    def make(variant: str, **override: Any) -> ConfigWorkflow:
        knobs = {
            "bundle_root": str(bundle),
            "datalist": str(folder / "list.json"),
            "data_root": str(folder / "images"),
            "site": sorted(listed.sites)[0],
            "image_size": 32,
            "batch_size": 2,
            "epochs": 1,
            "local_steps": 2,
            "network_name": "basic_unet",
            "standalone": {},
        }
        workflow = ConfigWorkflow(
            config_file=[str(bundle / "configs" / "train.json"), *map(str, variant_files(bundle, variant))],
            meta_file=str(bundle / "configs" / "metadata.json"),
            workflow_type="train",
            logging_file=False,
            **(knobs | override),
        )
        workflow.initialize()
        return workflow

    return make


@pytest.mark.parametrize("bundle", ["samfed_skin", "samfed_polyp"])
@pytest.mark.parametrize("variant", sorted(TERMS))
def test_both_bundles_take_it(bundle: str, variant: str) -> None:
    assert check_bundle(BUNDLES / bundle, "train", variant=variant, ready=False) == []


@pytest.mark.parametrize("variant", sorted(TERMS))
def test_it_trains_its_terms_with_its_guides_and_no_other(build: Build, variant: str) -> None:
    workflow = build(variant)
    workflow.run()
    state = workflow.trainer.state
    assert set(state.term_means) == TERMS[variant]
    assert state.guide_names == GUIDES[variant]
    assert "teacher" not in state.guidance.batch  # no SAM
    assert workflow.parser["teacher_adapt"] == "off"


def test_semifls_site_does_not_learn_from_the_public_labels(build: Build) -> None:
    workflow = build("semifl", local_steps=1)
    workflow.run()
    state = workflow.trainer.state
    means = state.term_means
    assert means["supervised"] > 0
    loss = state.output[0]["loss"] if isinstance(state.output, list) else state.output["loss"]
    assert loss.item() == pytest.approx(means["pseudo_label"] + means["mixup"], rel=1e-5)


def test_fedprox_without_mu_is_no_sam(build: Build) -> None:
    def weights(variant: str, **override: Any) -> dict[str, torch.Tensor]:
        workflow = build(variant, **override)
        torch.manual_seed(5)
        for weight in workflow.trainer.network.parameters():
            torch.nn.init.normal_(weight, std=0.1)
        workflow.run()
        return workflow.trainer.network.state_dict()

    plain, free, held = (
        weights("no_sam"),
        weights("fedprox", **{"terms#proximal#mu": 0.0}),
        weights("fedprox", **{"terms#proximal#mu": 100.0}),
    )
    assert all(torch.equal(plain[name], free[name]) for name in plain)
    assert not all(torch.equal(plain[name], held[name]) for name in plain)


@pytest.mark.parametrize("rule", ["average", "reliability"])
def test_the_other_rules_are_one_override_away(build: Build, rule: str) -> None:
    """With a guide that needs no SAM in the teacher's place."""
    override = {"agreement#rule": rule, "agreement#tau": 0.8, "terms#pseudo_label#teacher": "global"}
    off = {"guides#sam#_disabled_": True, "terms#sam_kd#_disabled_": True}
    workflow = build("samfed", **override, **off)
    workflow.run()
    learned = {"teacher_sensitivity", "teacher_specificity", "student_sensitivity", "student_specificity"}
    assert (learned <= set(workflow.trainer.state.term_means)) is (rule == "reliability")
    assert workflow.parser.get_parsed_content("terms#pseudo_label").settings.tau == 0.8
