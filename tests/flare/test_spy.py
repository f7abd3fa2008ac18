"""A run in FLARE's simulator: the bits of one process, and what a curious server could read of it.

That is every byte that reached it, and every file that it holds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from samfed_monai.config import find_bundle
from samfed_monai.core.io import read_json, write_json
from samfed_monai.data import DataList
from samfed_monai.federation.plan import Paths, Plan
from samfed_monai.federation.run import Run
from samfed_monai.flare.job import export_job, planned
from samfed_monai.flare.local import simulate
from samfed_monai.results import validate_results
from tests.flare.carried import hashes
from tests.flare.spy_controller import FOLDER, SpyController
from tests.flare.test_equality import SMALL_NETWORK
from tests.flare.toys import REPO
from tests.privacy.spy import leaks, server_files
from tests.privacy.test_spy import SITES, hospital, needles

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("forked", "allowed")]
__all__ = ["hospital"]
CLIENT = {"image_size": 64, "batch_size": 2, "local_steps": 1, "amp": False}


def own_files(hospital: Path, at: Path) -> Path:
    """Site files as in hospitals: no two sites share a folder."""
    for name in ("server", *SITES):
        paths = {"datalist": str(hospital / f"{name}.json"), "data_root": str(hospital)}
        write_json(
            at / "files" / f"{name}.json",
            {**paths, "cache_dir": str(at / name / "cache"), "output_dir": str(at / name / "run"), "threads": 1},
        )
    return at / "files"


def in_one_process(plan: Plan, hospital: Path, output: Path) -> dict[str, Any]:
    """Results of the same plan where one process has the images of all sites."""
    public, *sites = (DataList.load(hospital / f"{name}.json") for name in ("server", *SITES))
    own = {name: site for listed in sites for name, site in listed.sites.items()}
    DataList(public.name, public.public, own).save(output.parent / "list.json")
    return Run(plan, Paths(find_bundle("samfed_skin"), output.parent / "list.json", hospital, output)).run()


def test_fault_55_58_60_server_gets_no_private_data_and_same_weights(hospital, tmp_path, monkeypatch):
    (tmp_path / "messages").mkdir()
    monkeypatch.setenv(FOLDER, str(tmp_path / "messages"))
    given = {"variant": "no_sam", "rounds": 2, "warm_start_steps": 1, "privacy": {"least_images": 1}}
    client = {f"{name}": value for name, value in CLIENT.items()} | SMALL_NETWORK
    sites = {"sites": {name: {} for name in SITES}, **client}
    plan = planned(find_bundle("samfed_skin"), {**given, **sites}, here=False).plan
    run, workspace = tmp_path / "server" / "run", tmp_path / "workspace"
    simulate(
        export_job(tmp_path / "job", plan.to_json(), run_name="spy", min_clients=2, controller=SpyController),
        sites=SITES,
        workspace=workspace,
        run_folder=run,
        site_files=own_files(hospital, tmp_path),
        timeout=240,
        environment={"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"},
    )
    results = read_json(run / "results.json")
    assert validate_results(results) == []
    assert results["average"]["test"]["n"] == 4
    alone = in_one_process(plan, hospital, tmp_path / "alone")
    assert hashes(run) == hashes(tmp_path / "alone") != {}
    assert results["models"]["last"]["sites"] == alone["models"]["last"]["sites"]
    messages = [path.read_bytes() for path in sorted((tmp_path / "messages").iterdir())]
    assert len(messages) >= 2 * 2 * (1 + 2 * 2 + 2), "down and up: a check, two rounds of two, scores of two models"
    held = server_files(tmp_path / "server", site_local=())
    held += [path for path in server_files(workspace, site_local=()) if not set(path.parts) & set(SITES)]
    assert {"results.json", "run.json", "global.safetensors", "flare.log"} <= {path.name for path in held}
    assert leaks(messages, held, needles(hospital)) == []
    for site in SITES:
        own = server_files(tmp_path / site, site_local=())
        assert own, "the sites wrote into folders of their own"
    own = server_files(tmp_path / "site-1", site_local=())
    assert any(found.startswith("name in ") for found in leaks([], own, needles(hospital))), (
        "the spy sees what is there"
    )
