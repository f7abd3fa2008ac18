"""The variant that follows HSSF's conventions, in the skin bundle at a size that takes no time."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import monai
import pytest
import torch
from monai.bundle import ConfigWorkflow

from samfed_monai.config import variant_files
from samfed_monai.core.io import read_json
from samfed_monai.data import DataList, render_synthetic
from samfed_monai.federation import FederatedJob
from samfed_monai.federation.run import Run
from samfed_monai.federation.warm_start import warm_start
from samfed_monai.methods.hssf import HssfNetwork, NoiseViewd
from samfed_monai.results import validate_results

BUNDLE = Path(__file__).resolve().parents[2] / "bundles" / "samfed_skin"


@pytest.fixture(scope="module")
def workflow(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """``train.json`` with the variant on top, two steps on synthetic images of 32 pixels."""
    before = monai.data.get_track_meta()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("hssf")
    settings = {"images_per_site": 4, "public": 4, "validation": 2, "test": 1, "size": (64, 64)}
    listed = render_synthetic(folder / "images", sites=1, **settings)
    listed.save(folder / "list.json")
    made = ConfigWorkflow(
        config_file=[str(BUNDLE / "configs" / "train.json"), *map(str, variant_files(BUNDLE, "hssf_compat"))],
        workflow_type="train",
        logging_file=False,
        meta_file=str(BUNDLE / "configs" / "metadata.json"),
        bundle_root=str(BUNDLE),
        datalist=str(folder / "list.json"),
        data_root=str(folder / "images"),
        output_dir=str(folder / "out"),
        image_size=32,
        local_steps=2,
        epochs=1,
        site=next(iter(DataList.load(folder / "list.json").sites)),
    )
    made.initialize()
    yield made
    monai.data.set_track_meta(before)


def test_it_trains_by_the_conventions(workflow: ConfigWorkflow) -> None:
    parts = {
        name: workflow.parser.get_parsed_content(name)
        for name in ("network", "optimizer", "train#trainer", "unlabelled#dataloader", "validate#scores", "steps")
    }
    assert isinstance(parts["network"], HssfNetwork)
    (group,) = parts["optimizer"].param_groups
    assert (group["lr"], group["weight_decay"]) == (1e-4, 0.02)
    rate = workflow.parser.get_parsed_content("before#learning_rate")
    assert rate.factor(199, 200) == pytest.approx(0.01 + 0.99 * (1 + math.cos(math.pi * 199 / 800)) / 2)
    assert not workflow.parser.get_parsed_content("loss").weighted_entropy
    views = parts["unlabelled#dataloader"].dataset.transform.transforms
    assert isinstance(views[-1], NoiseViewd)
    assert (views[-1].deviation, views[-1].limit) == (0.05, 0.1)  # 0.1 and 0.2 of images in [-1, 1]
    weak = views[-2].view
    assert (weak.flip, weak.quarter_turns, weak.rotate, weak.zoom) == (True, False, 90.0, (1.0, 1.0))
    assert (weak.shear, weak.shift) == (0.0, 0.125)
    assert (parts["validate#scores"].pooled, parts["validate#scores"].skip_empty) == (True, True)
    trainer = parts["train#trainer"]
    assert trainer.data_loader.batch_size == parts["unlabelled#dataloader"].batch_size == 4
    trainer.run()
    assert set(trainer.state.term_means) == {"supervised", "lssl", "lssl_counted", "lssl_flipped"}
    sharing = workflow.parser.get_parsed_content("sharing")
    means = sharing.phase.run(0, 1, sharing.own_masks())
    assert set(means) == {"supervised", "confidence", "confidence_mean", "public_kd", "public_kd_gate"}
    assert sharing.predictor.reliability_measure == "pixel_accuracy"
    assert sharing.phase.steps == 4, "four passes over the four public images in batches of four"


@pytest.mark.slow
def test_a_federation_warms_up_by_the_conventions_too(tmp_path: Path) -> None:
    settings = {"images_per_site": 5, "public": 4, "validation": 1, "test": 1, "size": (64, 64)}
    render_synthetic(tmp_path, sites=2, **settings).save(tmp_path / "list.json")
    job = FederatedJob(
        bundle_root=BUNDLE,
        datalist=tmp_path / "list.json",
        data_root=tmp_path,
        output_dir=tmp_path / "run",
        variant="hssf_compat",
        rounds=1,
        warm_start_steps=2,
        train={"image_size": 32, "local_steps": 1, "server_network": "hssf_resnet18", "amp": False},
        privacy={"least_images": 1},
    )
    results = job.run()
    assert validate_results(results) == []
    assert (results["exchange"], set(results["networks"].values())) == ("predictions", {"hssf_resnet18"})
    assert results["convention"] == {"hd95": "pooled", "empty": "skipped"}
    listed = DataList.load(tmp_path / "list.json")
    config, steps = Run(job.plan, job.places).warm_config("hssf_resnet18")
    warm = config.parser()
    assert steps == 2
    assert (warm["optimizer#lr"], warm["train#dataloader#batch_size"], warm["loss#weighted_entropy"]) == (
        1e-4,
        4,
        False,
    )
    asked = replace(job.plan, train={**job.plan.train, "learning_rate": 0.5, "batch_size": 2})
    warm = Run(asked, job.places).warm_config("hssf_resnet18")[0].parser()
    assert (warm["optimizer#lr"], warm["train#dataloader#batch_size"]) == (0.5, 2), "the run's own knobs go before it"
    trained, untrained = (
        warm_start(config, datalist=listed, steps=count, seed=0, cache_dir=tmp_path)[0] for count in (2, 0)
    )
    head = [name for name in trained if name.startswith("confidence") and name.endswith("weight")]
    assert head
    assert not any(torch.equal(trained[name], untrained[name]) for name in head), "the confidence is learned there, too"
    record = read_json(tmp_path / "run" / "rounds" / "000" / "round.json")["sites"]["site-1"]
    assert {"lssl", "public_supervised", "public_kd"} <= record["terms"].keys()
