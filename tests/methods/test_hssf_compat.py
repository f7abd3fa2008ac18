"""The variant that follows HSSF's conventions, in the skin bundle; ``test_published.py`` has its numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from samfed_monai.core.io import read_json
from samfed_monai.data import DataList
from samfed_monai.federation.run import Run
from samfed_monai.federation.start import warm_start
from samfed_monai.methods import hssf
from samfed_monai.networks.torchvision_ops import declare_torchvision_operators
from samfed_monai.results import validate_results
from tests.federation.test_job import job


@pytest.fixture(autouse=True)
def small_network() -> Iterator[None]:
    """Whatever ResNet is asked for, one of half a million parameters, and a decoder of 16 channels."""
    declare_torchvision_operators()
    from segmentation_models_pytorch import encoders

    get_encoder = encoders.get_encoder
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hssf, "WIDTH", 16)
        small = "timm-mobilenetv3_small_minimal_100"
        patch.setattr(encoders, "get_encoder", lambda name, **options: get_encoder(small, **options))
        yield


def test_it_trains_by_the_conventions(build) -> None:
    workflow = build("hssf_compat", network_name="hssf_resnet18", batch_size=4, local_steps=2)
    parser = workflow.parser
    assert isinstance(parser.get_parsed_content("network"), hssf.HssfNetwork)
    views = parser.get_parsed_content("unlabelled#dataloader").dataset.transform.transforms
    assert isinstance(views[-1], hssf.NoiseViewd)
    weak, scores = views[-2], parser.get_parsed_content("validate#scores")
    assert (weak.flip, weak.quarter_turns, weak.zoom, weak.shear) == (True, False, (1.0, 1.0), 0.0)
    assert (scores.pooled, scores.skip_empty) == (True, True)
    workflow.run()
    assert set(workflow.trainer.state.term_means) == {"supervised", "lssl", "lssl_counted", "lssl_flipped"}
    sharing = parser.get_parsed_content("sharing")
    means = sharing.phase.run(0, 1, sharing.own_masks())
    assert set(means) == {"supervised", "confidence", "confidence_mean", "public_kd", "public_kd_gate"}
    assert sharing.predictor.reliability_measure == "pixel_accuracy"
    assert sharing.phase.steps == 4, "four passes over the four public images in batches of four"


@pytest.mark.slow
def test_a_federation_warms_up_by_the_conventions_too(small_federation: Path, tmp_path: Path) -> None:
    client = {"image_size": 32, "local_steps": 1, "server_network": "hssf_resnet18", "amp": False}
    made = job(small_federation, tmp_path / "run", variant="hssf_compat", rounds=1, train=client)
    results = made.run()
    assert validate_results(results) == []
    assert (results["exchange"], set(results["networks"].values())) == ("predictions", {"hssf_resnet18"})
    assert results["convention"] == {"hd95": "pooled", "empty": "skipped"}
    config, steps = Run(made.plan, made.places).warm_config("hssf_resnet18")
    warm = config.parser()
    numbers = [warm[name] for name in ("optimizer#lr", "train#dataloader#batch_size", "loss#weighted_entropy")]
    assert (steps, numbers) == (2, [1e-4, 4, False])
    asked = replace(made.plan, train={**made.plan.train, "learning_rate": 0.5, "batch_size": 2})
    warm = Run(asked, made.places).warm_config("hssf_resnet18")[0].parser()
    assert (warm["optimizer#lr"], warm["train#dataloader#batch_size"]) == (0.5, 2), "the run's own options go before it"
    listed = DataList.load(small_federation / "list.json")
    trained, untrained = (
        warm_start(config, datalist=listed, steps=count, seed=0, cache_dir=tmp_path)[0] for count in (2, 0)
    )
    head = [name for name in trained if name.startswith("confidence") and name.endswith("weight")]
    assert head
    assert not any(torch.equal(trained[name], untrained[name]) for name in head), "the confidence is learned there, too"
    record = read_json(tmp_path / "run" / "rounds" / "000" / "round.json")["sites"]["site-1"]
    assert {"lssl", "public_supervised", "public_kd"} <= record["terms"].keys()
