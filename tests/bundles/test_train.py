"""train.json and evaluate.json of one bundle as MONAI runs them; ``test_alone.py`` trains both."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import monai
import pytest
import torch
from monai.bundle import ConfigWorkflow

from samfed_monai.config.workflow import unwrap_own
from samfed_monai.core.io import check_tensors, read_json, safe_load, save_tensors
from samfed_monai.data import SoftMaskStore, load_records, render_synthetic
from tests.workflow import workflow

from .conftest import REPOSITORY

SKIN = REPOSITORY / "bundles" / "samfed_skin"
EVALUATE = "evaluate.json"
TEACHER = "a" * 64
NO_SAM = {
    "guides#sam#_disabled_": True,
    "terms#sam_kd#_disabled_": True,
    "terms#pseudo_label#teacher": "weak",
    "agreement#rule": "student",
}
Build = Callable[..., ConfigWorkflow]


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Any:
    """Restores MONAI's global switch."""
    before = monai.data.get_track_meta()
    yield
    monai.data.set_track_meta(before)


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two synthetic sites with a data list and a store of soft masks."""
    folder = tmp_path_factory.mktemp("sites")
    settings: dict[str, Any] = {"images_per_site": 6, "public": 6, "validation": 2, "test": 3, "size": (64, 80)}
    listed = render_synthetic(folder, sites=2, labelled=True, **settings)
    listed.save(folder / "list.json")
    store = SoftMaskStore(folder / "store", teacher_sha256=TEACHER)
    for name in listed.sites:
        for record in load_records(listed, folder, split="unlabelled", site=name):
            store.put(record["image_sha256"], torch.full((1, 16, 16), 0.75))
    return folder


@pytest.fixture
def build(sites: Path, tmp_path: Path) -> Build:
    """A small workflow on those sites; ``evaluate.json`` is used on top of ``train.json``."""

    def make(*files: Any, **override: Any) -> ConfigWorkflow:
        return workflow(SKIN, sites, files, **{"output_dir": str(tmp_path / "out"), "epochs": 2, **override})

    return make


def with_store(sites: Path) -> dict[str, Any]:
    return {"store_dir": str(sites / "store"), "teacher_sha256": TEACHER}


def test_required_monai_properties_are_found(build: Build) -> None:
    assert build().check_properties() == []
    assert build(EVALUATE).check_properties() == []


def test_standalone_training_with_sam_reports_terms_and_trust(build: Build, sites: Path, tmp_path: Path) -> None:
    made = build(**with_store(sites), **{"agreement#least_agreement": 0.75})
    made.run()
    state = made.trainer.state
    assert state.iteration == 4
    terms = {"supervised", "pseudo_label", "sam_kd", "global_kd"}
    assert set(state.term_means) == terms | {"reliability", "agreement", "trust", "sure_agreement"}
    best = safe_load(tmp_path / "out" / "best.safetensors")
    assert not check_tensors(best, like=made.trainer.network.state_dict())
    (settings,) = state.site_agreements  # one for both terms
    assert settings.least_agreement == 0.75
    assert 0 <= state.term_means["trust"] <= 1
    assert 0 <= state.term_means["sure_agreement"] <= 1


def test_validation_runs_every_val_interval_epochs(build: Build) -> None:
    made = build(epochs=3, val_interval=2, local_steps=1, **NO_SAM)
    assert made.val_interval == 2  # by the name that MONAI asks for
    validated: list[int] = []
    made.evaluator.add_event_handler("COMPLETED", lambda _: validated.append(made.trainer.state.epoch))
    made.run()
    assert validated == [2]


def test_training_without_images_is_refused(build: Build) -> None:
    off = {f"terms#{name}#_disabled_": True for name in ("pseudo_label", "sam_kd", "global_kd")}
    split = {"train#dataset#split": "unlabelled"}  # of which the server has none
    made = build(site="", **off, **split, **{"stream#_disabled_": True})
    with pytest.raises(RuntimeError) as caught:
        made.run()
    assert "train#dataset: expected training images, found no image" in str(unwrap_own(caught.value))


def test_epoch_length_is_one_pass_over_unlabelled_images(build: Build) -> None:
    assert build(local_steps=None, batch_size=4, **NO_SAM).trainer.state.epoch_length == 2  # 6 images


def test_only_oracle_reads_unlabelled_labels(build: Build) -> None:
    for oracle in (False, True):
        images = build(oracle=oracle, **NO_SAM).parser.get_parsed_content("unlabelled#dataset")
        assert ("label" in images[0]) is oracle


def test_evaluation_covers_all_sites(build: Build, tmp_path: Path) -> None:
    made = build(EVALUATE, site="", model=str(tmp_path / "w.safetensors"))
    save_tensors(tmp_path / "w.safetensors", made.parser.get_parsed_content("network").state_dict())
    made.run()
    metrics = read_json(tmp_path / "out" / "metrics.json")
    assert metrics["split"] == "test"
    assert [site["n"] for site in metrics["sites"].values()] == [3, 3]
    assert metrics["average"]["n"] == 6
    dice = [site["dice"] for site in metrics["sites"].values()]
    assert metrics["average"]["dice"] == pytest.approx(sum(dice) / 2)
    for name in metrics["sites"]:
        assert len((tmp_path / "out" / name / "test" / "scores.csv").read_text().splitlines()) == 4


def test_fault_33_weights_of_another_shape_are_refused(build: Build, tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(2)}, tmp_path / "model.pt")
    with pytest.raises(RuntimeError) as caught:
        build(EVALUATE, model=str(tmp_path / "model.pt")).run()
    message = str(unwrap_own(caught.value))
    assert "model.pt: expected weights of this network, found" in message
    hint = "give the --network_name of the training, or the bundle of the training, in which inference.json must"
    assert hint in message
