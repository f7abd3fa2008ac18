"""Whole jobs: over a transport that serialises and in one process, of one network and of unlike ones side by side.

Over the transport the server has the public images, and each site its own list.
"""

from __future__ import annotations

import csv
import dataclasses
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from samfed_monai import __version__
from samfed_monai.cli.main import main
from samfed_monai.config import find_bundle
from samfed_monai.core.errors import Refused
from samfed_monai.core.io import read_json, safe_load, sha256_file
from samfed_monai.core.process_setup import device_name
from samfed_monai.data import DataList
from samfed_monai.federation import FederatedJob, Plan, Site, run
from samfed_monai.results import validate_results
from tests.federation.test_job import CLIENT, UNLIKE, job
from tests.federation.wired import Homes
from tests.methods import pick, present

SITES = ("site-1", "site-2", "site-3")


def timeless(teacher: dict[str, Any]) -> dict[str, Any]:
    """What results say of a teacher, without what depends on the clock."""
    assert teacher["milliseconds"] > 0
    return {name: value for name, value in teacher.items() if name != "milliseconds"}


def at_server(federation: Path, homes: Homes, output: Path, **options: Any) -> FederatedJob:
    """The same job with the server's own list and a folder without a site's images."""
    public = output.parent / "public"
    for item in DataList.load(federation / "list.json").public:
        for name in filter(None, (item.image, item.label)):
            (public / name).parent.mkdir(parents=True, exist_ok=True)
            (public / name).write_bytes((federation / name).read_bytes())
    named = {"sites": {"site-1": {}, "site-2": {}}, "unseen": ["site-3"], "privacy": {"least_images": 1}}
    return job(public, output, datalist=homes.lists["server"], **{**named, **options})


def test_adapter_is_sent_and_sites_compute_masks(three_sites, tmp_path, given):
    ours, loaded = given.options, given.loaded
    together = job(three_sites, tmp_path / "together", **ours).run()
    assert len(loaded) == 1, "one process loads its teacher once"
    homes = Homes(three_sites, tmp_path / "homes")
    apart = at_server(three_sites, homes, tmp_path / "apart", **ours).run(homes)
    assert loaded == [sha256_file(tmp_path / "given.safetensors")] * 5, "and then the server and every site"
    assert validate_results(apart) == []
    assert apart["hashes"]["model_last"] == together["hashes"]["model_last"]
    assert timeless(apart["teacher"]) == timeless(together["teacher"])
    everywhere = apart["teacher"]["sites"] | apart["teacher"]["unseen"]
    assert {site: entry["test"]["n"] for site, entry in everywhere.items()} == dict.fromkeys(SITES, 2)
    assert apart["teacher"]["average"]["test"]["n"] == 2 * len(apart["sites"]) < 2 * len(SITES)
    assert 0 < apart["teacher"]["average"]["test"]["dice"] < 1
    assert not (tmp_path / "apart" / "cache" / "soft_masks").exists(), "private masks stay at their sites"
    assert (tmp_path / "homes" / "site-1" / "cache" / "soft_masks" / "site-1").is_dir()
    before = [results["traffic"]["down_bytes_before"] for results in (together, apart)]
    assert 3 * 64 < before[0] - before[1] < 3 * 96, "a server without the list cannot ask for the hash of a part"


@pytest.mark.parametrize("found", ["1 problem", "2 problems"])  # no image is there, or one file is damaged
def test_site_differences_are_reported_together_before_run(three_sites, tmp_path, monkeypatch, found):
    homes, images = Homes(three_sites, tmp_path / "homes"), tmp_path / "images"

    def changed(plan: Plan):
        transport = homes(plan)
        listed = DataList.load(homes.lists["site-2"])
        listed.public.reverse()
        listed.save(homes.lists["site-2"])
        homes.nodes["site-2"] = homes.node("site-2", dataclasses.replace(plan, seed=1))
        shutil.copytree(three_sites, images)
        (images / DataList.load(homes.lists["site-1"]).sites["site-1"].test[0].image).write_bytes(b"")
        there = dataclasses.replace(homes.nodes["site-1"].paths, data_root=tmp_path if found[0] == "1" else images)
        homes.nodes["site-1"] = Site("site-1", plan, there)
        return transport

    fingerprints = run.own_fingerprints
    monkeypatch.setattr(run, "own_fingerprints", lambda *given: fingerprints(*given) | {"version": "9.9"})
    with pytest.raises(Refused) as caught:
        at_server(three_sites, homes, tmp_path / "run").run(changed)
    text = str(caught.value)
    assert "site-2: expected a site that can take part, found plan and bundle: expected the server's" in text
    version = f"expected the server's 9.9, found {__version__}; install the same version at both ends"
    assert f"samfed-monai: {version}" in text
    assert "public part of the data list: expected the server's" in text
    assert f"images: expected images and masks as they were listed, found {found}; see this site's log" in text
    assert not [name for name in (".png", ".jpg", str(tmp_path)) if name in text], "no name or path of a site travels"
    assert "site-3" in text, "every site's differences"
    assert not (tmp_path / "run" / "cache" / "warm_start").exists(), "before anything was trained"
    assert not (tmp_path / "run" / "rounds").exists()


def test_missing_and_unknown_clients_are_refused():
    participants = SimpleNamespace(sites=("site-1", "site-2"), unseen=("site-3",))
    with pytest.raises(Refused) as caught:
        run.require_sites(SimpleNamespace(sites=("site-1", "site-3", "site-9")), participants)
    assert [str(problem).partition("; ")[0] for problem in caught.value.problems] == [
        "site site-2: expected a connected client, found no client of that name",
        "site site-9: expected a site of the plan, found a client that the plan does not name",
    ]
    run.require_sites(SimpleNamespace(sites=("site-1", "site-2", "site-3")), participants)


def test_run_resumes_while_site_is_absent(three_sites, tmp_path):
    options = {"allow_single_site": True, "quorum": 1, "rounds": 1, "warm_start_steps": 0}
    homes = Homes(three_sites, tmp_path / "homes")
    at_server(three_sites, homes, tmp_path / "run", **options).run(homes)
    (tmp_path / "run" / "results.json").unlink()
    homes.away.add("site-2")
    results = at_server(three_sites, homes, tmp_path / "run", **options).run(homes)
    assert results["models"]["last"]["round"] == 0


@pytest.mark.parametrize(
    ("options", "refusal"),
    [
        ({"sites": {}, "unseen": []}, r"federate\.json -> sites: expected the name of every site that trains"),
        (
            {"sites": {"site-1": {"data_root": "/elsewhere"}, "site-2": {}}},
            r"sites#site-1#data_root: expected no path .*; set it at the site",
        ),
    ],
    ids=["sites without names", "a path at a site"],
)
def test_server_sites_without_names_or_with_paths_are_refused(three_sites, tmp_path, options, refusal):
    homes = Homes(three_sites, tmp_path / "homes")
    with pytest.raises(Refused, match=refusal):
        at_server(three_sites, homes, tmp_path / "run", **options).run(homes)


#: What a site keeps that no message has: weights of others, or a part of the network.
KEPT = {"apple": "algorithm.shares", "fedbn": ".adn.N."}


@pytest.mark.slow
@pytest.mark.parametrize("variant", present(*KEPT))
def test_wire_run_equals_single_process_run(three_sites, tmp_path, variant):
    options = {"variant": variant, "train": {**CLIENT, "local_steps": 1}, "rounds": 2, "privacy": {"least_images": 1}}
    together = job(three_sites, tmp_path / "together", **options).run()
    homes = Homes(three_sites, tmp_path / "homes")
    apart = at_server(three_sites, homes, tmp_path / "apart", **options).run(homes)
    assert validate_results(apart) == []
    for part in ("sites", "average", "unseen", "networks", "exchange", "skipped"):
        assert apart[part] == together[part], part
    assert apart["hashes"]["model_last"] == together["hashes"]["model_last"]
    assert apart["traffic"]["down_bytes"] == together["traffic"]["down_bytes"]
    assert together["models"]["last"]["unseen"]["site-3"]["test"]["n"] == 2
    assert (together["process"]["device"], "device" in apart["process"]) == (device_name(), False), "sites compute"
    assert not (tmp_path / "apart" / "evaluation").exists(), "tables of images are at the sites"
    assert (tmp_path / "homes/site-3/evaluation/best/site-3/test/scores.csv").is_file()
    requests = homes.requests
    assert requests[:6] == [(task, f"site-{n}") for task in ("check", "prepare") for n in (1, 2, 3)]
    assert_kept(tmp_path, KEPT[variant])
    if variant == "fedbn":
        own = [safe_load(state_of(tmp_path, site)) for site in ("site-1", "site-2")]
        names = [name for name in own[0] if KEPT[variant] in name]
        assert any(not torch.equal(own[0][name], own[1][name]) for name in names)


def state_of(folder: Path, site: str) -> Path:
    """What a site on the wire kept of the second round."""
    return folder / "homes" / site / "states" / "001.safetensors"


def assert_kept(folder: Path, part: str) -> None:
    """Both ways a site keeps the same tensors; some belong to ``part``, and nothing that is shared does."""
    for site in ("site-1", "site-2"):
        state = safe_load(state_of(folder, site))
        wanted = safe_load(folder / f"together/rounds/001/clients/{site}.safetensors")
        assert state.keys() == wanted.keys()
        assert [name for name in wanted if not torch.equal(state[name], wanted[name])] == []
        assert any(part in name for name in state), sorted(state)
    assert not [name for name in safe_load(folder / "apart/rounds/001/global.safetensors") if part in name]


ONE_ROUND = {"rounds": 1, "warm_start_steps": 0}
NETWORKS = {"site-1": "flexible_unet_resnet18", "site-2": "basic_unet"}


def test_different_networks_run_and_unseen_site_uses_server_network(three_sites, tmp_path):
    sites = {site: {"network": name} for site, name in NETWORKS.items()}
    train = {**CLIENT, **UNLIKE, "local_steps": 1}
    results = job(three_sites, tmp_path, sites=sites, **ONE_ROUND, variant="hssf", train=train).run()
    assert validate_results(results) == []
    assert (results["networks"], results["exchange"], results["skipped"]) == (NETWORKS, "predictions", [])
    assert set(results["sites"]) == set(NETWORKS)
    assert results["models"]["last"]["unseen"]["site-3"]["test"]["n"] == results["unseen"]["site-3"]["test"]["n"] == 2
    rows = list(csv.DictReader((tmp_path / "federation.csv").open()))
    assert {row["site"]: row["status"] for row in rows} == dict.fromkeys(NETWORKS, "ok")
    assert all(float(row["term_public_supervised"]) > 0 for row in rows)
    assert all(int(row["up_bytes"]) < 20_000 for row in rows), "no weights leave a site"
    assert (tmp_path / "evaluation" / "best" / "site-3" / "test" / "scores.csv").is_file()
    data = ["--datalist", str(three_sites / "list.json"), "--data-root", str(three_sites), "--site", "site-3"]
    command = ["evaluate", str(find_bundle("samfed_skin")), "--model", str(tmp_path), *data]
    assert main([*command, "--output-dir", str(tmp_path / "again")]) == 0
    again = read_json(tmp_path / "again" / "metrics.json")["sites"]["site-3"]
    assert again["dice"] == results["unseen"]["site-3"]["test"]["dice"], "it is the server's network that is scored"


@pytest.mark.parametrize(
    ("variant", "client", "exchange", "model"),
    pick([("local_only", {}, "none", False), ("hssf", {"exchange": "weights"}, "weights", True)]),
)
def test_run_with_and_without_server_model(three_sites, tmp_path, variant, client, exchange, model):
    train = {**CLIENT, **UNLIKE, "local_steps": 1, **client}
    results = job(three_sites, tmp_path / "run", **ONE_ROUND, variant=variant, train=train).run()
    assert validate_results(results) == []
    assert (results["exchange"], results["skipped"]) == (exchange, [])
    assert bool(safe_load(tmp_path / "run/rounds/000/global.safetensors")) == model
    assert bool(results["models"]["last"].get("unseen", {}).get("site-3")) == model, "the server has a model or not"
    for site, tensor in {
        "site-1": "network.conv_0.conv_0.conv.weight",
        "site-2": "network.conv_0.conv_0.adn.N.running_mean",
    }.items():
        assert tensor in safe_load(tmp_path / f"run/rounds/000/clients/{site}.safetensors")
