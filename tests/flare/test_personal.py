"""Strategies that personalise: what each site keeps has the same bits in one process and in FLARE's simulator."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from samfed_monai.config import find_bundle
from samfed_monai.core.io import read_json, safe_load
from samfed_monai.federation.job_run import JobRun
from samfed_monai.flare.job import export_job, planned
from samfed_monai.flare.local import simulate, write_site_files
from tests.flare import tiny_sam
from tests.flare.test_equality import hashes, one_thread
from tests.flare.toys import REPO
from tests.methods import present

pytestmark = pytest.mark.slow
__all__ = ["one_thread"]

SITES = ("site-1", "site-2")
SMALL = {
    "rounds": 2,
    "image_size": 32,
    "batch_size": 2,
    "local_steps": 1,
    "network_name": "basic_unet",
    "warm_start_steps": 1,
    "client#amp": False,
    "privacy#least_images": 1,
}
#: Variant to its options and to one name, at least, that a site keeps and that is in no message.
VARIANTS: dict[str, tuple[dict[str, Any], str]] = {
    "fedper": ({"client#personal": ["final_conv.*"]}, "final_conv.weight"),
    "apple": ({}, "sharing.shares"),
    "ditto": ({}, "network."),
    "fedala": ({}, "sharing."),
    "fedicra": ({"client#sharing#after": 0, "local_steps": 2, "client#before#parts#share": 0.5}, "sharing.begun"),
    "fca": ({}, ".exp_avg"),
}


def assert_same(here: Path, there: Path, cache: Path, kept: str) -> None:
    """Every round's shared weights, the last round's state of each site, and the scores."""
    assert hashes(here) == hashes(there) != {}
    for site in SITES:
        (path,) = (cache / "sites" / site / "state").glob(f"*/{site}/001.safetensors")
        state, wanted = safe_load(path), safe_load(here / "rounds" / "001" / "clients" / f"{site}.safetensors")
        assert state.keys() == wanted.keys()
        assert [name for name in wanted if not torch.equal(state[name], wanted[name])] == []
        assert any(kept in name for name in wanted), sorted(wanted)
    results = [read_json(run / "results.json") for run in (here, there)]
    assert results[0]["models"]["last"]["sites"] == results[1]["models"]["last"]["sites"]
    sent = [result["traffic"]["up_bytes"] for result in results]
    assert sent[0] == pytest.approx(sent[1], abs=200), "seconds have more digits or less, nothing else"


def both_ways(folder: Path, tmp_path: Path, options: dict[str, Any], kept: str, **job: Any) -> Path:
    """Runs in this process and in the simulator, compares them, and returns the second's folder."""
    here, there = run_both_ways(folder, tmp_path, options, **job)
    assert_same(here, there, there / "cache", kept)
    return there


def run_both_ways(folder: Path, tmp_path: Path, options: dict[str, Any], **job: Any) -> tuple[Path, Path]:
    """Runs in this process and in the simulator; the two folders."""
    run = tmp_path / "run"
    places = {"datalist": str(folder / "list.json"), "data_root": str(folder), "output_dir": str(run)}
    made = planned(find_bundle("samfed_skin"), {**options, **places}, here=False)
    assert made.datalist is not None
    JobRun(made.plan, replace(made.places, output_dir=tmp_path / "local")).run()
    simulate(
        export_job(tmp_path / "job", made.plan.to_json(), run_name="personal", min_clients=2, **job),
        sites=SITES,
        workspace=tmp_path / "workspace",
        run_folder=run,
        site_files=write_site_files(tmp_path / "files", made.datalist, made.places, made.sites, threads=1),
        timeout=240,
        more_classes=["tests."],
        environment={"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"},
    )
    return tmp_path / "local", run


@pytest.mark.parametrize("variant", present(*VARIANTS))
def test_what_sites_keep_is_the_same_in_one_process_and_the_simulator(two_sites, tmp_path, variant):
    more, kept = VARIANTS[variant]
    run = both_ways(two_sites, tmp_path, {**SMALL, **more, "variant": variant}, kept)
    shared = safe_load(run / "rounds" / "001" / "global.safetensors")
    assert not [name for name in shared if kept in name]


def test_a_sam_whose_lora_alone_travels_is_the_same_in_one_process_and_the_simulator(two_sites, tmp_path, monkeypatch):
    for entries, builder in tiny_sam.catalogues():
        monkeypatch.setitem(entries, tiny_sam.NAME, builder)
    options = {**SMALL, "batch_size": 1, "local_steps": 2, "variant": "pfedsam", "client#sam_network": tiny_sam.NAME}
    job = {
        "controller": "tests.flare.tiny_sam_controller.TinySamController",
        "executor": "tests.flare.executors.TinySamExecutor",
    }
    run = both_ways(two_sites, tmp_path, options, "mlp.experts.up", **job)
    shared = safe_load(run / "rounds" / "001" / "global.safetensors")
    assert {name.rpartition(".")[2] for name in shared} == {"query_a", "query_b", "value_a", "value_b"}
