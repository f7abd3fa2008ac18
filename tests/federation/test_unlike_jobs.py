"""The whole job with unlike networks of the catalogue, side by side, on small synthetic sites."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path
from typing import Any

import pytest

from samfed_monai.cli.main import main
from samfed_monai.config import find_bundle
from samfed_monai.core.errors import Refused
from samfed_monai.core.io import read_json, safe_load
from samfed_monai.data import DataList, render_synthetic
from samfed_monai.federation import FederatedJob
from samfed_monai.results import validate_results
from tests.federation import test_job
from tests.methods import pick

NETWORKS = {
    "site-1": "deeplabv3plus_resnet18",
    "site-2": "deeplabv3plus_resnet34",
    "site-3": "deeplabv3plus_efficientnet_lite0",
    "site-4": "flexible_unet_resnet18",
    "site-5": "basic_unet",
}
CLIENT = {"image_size": 32, "batch_size": 2, "local_steps": 1, "public_steps": 1, "amp": False}
SCRATCH = {"encoder_weights": None}  # no weights of others are needed
SMALL = {"mixed_networks": ["basic_unet", "flexible_unet_resnet18"], "server_network": "basic_unet"}


@pytest.fixture(scope="module")
def five_sites(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five sites that train, and ``site-6``, which has nothing but test images."""
    folder = tmp_path_factory.mktemp("five")
    counts: dict[str, Any] = {"images_per_site": 2, "public": 2, "validation": 1, "test": 1, "size": (64, 64)}
    listed = render_synthetic(folder, sites=6, labelled=True, **counts)
    listed.sites["site-6"] = dataclasses.replace(listed.sites["site-6"], unlabelled=[], validation=[])
    listed.save(folder / "list.json")
    return folder


def job(folder: Path, output: Path, variant: str, **options: Any) -> FederatedJob:
    train = {**CLIENT, **options.pop("train", {})}
    short = {"rounds": 1, "variant": variant, "warm_start_steps": 0, "train": train}
    return test_job.job(folder, output, **{**short, **options})


def two_sites(folder: Path, to: Path) -> Path:
    """The same images with the list of two sites and one unseen one."""
    datalist = DataList.load(folder / "list.json")
    for name in ("site-3", "site-4", "site-5"):
        del datalist.sites[name]
    datalist.save(to)
    return to


@pytest.mark.slow
def test_five_unlike_networks_run_side_by_side_and_an_unseen_hospital_gets_the_servers(five_sites, tmp_path):
    sites = {site: {"network": name} for site, name in NETWORKS.items()}
    results = job(five_sites, tmp_path, "hssf", sites=sites, train={"server_network": "basic_unet", **SCRATCH}).run()
    assert validate_results(results) == []
    assert (results["networks"], results["exchange"]) == (NETWORKS, "predictions")
    assert results["skipped"] == []
    assert set(results["sites"]) == set(NETWORKS)
    assert results["models"]["last"]["unseen"]["site-6"]["test"]["n"] == 1
    assert results["unseen"]["site-6"]["test"]["n"] == 1
    rows = list(csv.DictReader((tmp_path / "federation.csv").open()))
    assert {row["site"]: row["status"] for row in rows} == dict.fromkeys(NETWORKS, "ok")
    assert all(float(row["term_public_supervised"]) > 0 for row in rows)
    assert all(int(row["up_bytes"]) < 20_000 for row in rows), "no weights leave a site"
    assert (tmp_path / "evaluation" / "best" / "site-6" / "test" / "scores.csv").is_file()
    data = ["--datalist", str(five_sites / "list.json"), "--data-root", str(five_sites), "--site", "site-6"]
    command = ["evaluate", str(find_bundle("samfed_skin")), "--model", str(tmp_path), *data]
    assert main([*command, "--output-dir", str(tmp_path / "again")]) == 0
    again = read_json(tmp_path / "again" / "metrics.json")["sites"]["site-6"]
    assert again["dice"] == results["unseen"]["site-6"]["test"]["dice"], "it is the server's network that is scored"


@pytest.mark.parametrize(
    ("variant", "client", "exchange", "model"),
    pick(
        [
            ("fedmd", {}, "predictions", False),
            ("local_only", {}, "none", False),
            ("hssf", {"exchange": "weights"}, "weights", True),
        ]
    ),
)
def test_every_row_runs_on_two_unlike_networks(five_sites, tmp_path, variant, client, exchange, model):
    datalist = two_sites(five_sites, tmp_path / "two.json")
    results = job(five_sites, tmp_path / "run", variant, datalist=datalist, train={**SMALL, **client}).run()
    assert validate_results(results) == []
    assert (results["exchange"], results["skipped"]) == (exchange, [])
    assert results["networks"] == {"site-1": "basic_unet", "site-2": "flexible_unet_resnet18"}
    assert bool(safe_load(tmp_path / "run/rounds/000/global.safetensors")) == model
    assert bool(results["models"]["last"].get("unseen", {}).get("site-6")) == model, "the server has a model or not"
    for site, tensor in {
        "site-1": "network.conv_0.conv_0.conv.weight",
        "site-2": "network.conv_0.conv_0.adn.N.running_mean",
    }.items():
        assert tensor in safe_load(tmp_path / f"run/rounds/000/clients/{site}.safetensors")


def test_the_same_images_at_another_size_stop_the_job_before_round_0(five_sites, tmp_path):
    datalist = two_sites(five_sites, tmp_path / "two.json")
    sites = {"site-2": {"image_size": 64}}
    with pytest.raises(
        Refused, match=r"site-2: expected a site that can take part, found public set: expected that of"
    ):
        job(five_sites, tmp_path / "run", "hssf", datalist=datalist, train=SMALL, sites=sites).run()
    assert not (tmp_path / "run" / "rounds").exists()
