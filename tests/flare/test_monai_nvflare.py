"""The client under NVIDIA's own parts for MONAI FL: ClientAlgoExecutor, FLARE's aggregators and its simulator."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from samfed_monai.flare.job import merge_allow_list
from tests.federation.toys import BUNDLE, ToyNet

pytestmark = pytest.mark.slow
pytest.importorskip("monai_nvflare", reason="monai-nvflare is not installed; NVIDIA deprecates it")

# FLARE builds no class of a job that the installation's local/resources.json does not allow.
CLASSES = ("monai_nvflare.", "nvflare.app_opt.", "nvflare.app_common.", "samfed_monai.", "tests.federation.toys.")
SITES = ("site-1", "site-2")
PYTORCH = "nvflare.app_opt.pt"


def persistor(name: str) -> dict:
    args = {"model": {"path": "tests.federation.toys.ToyNet", "args": {}}, "global_model_file_name": f"{name}.pt"}
    return {"id": name, "path": f"{PYTORCH}.file_model_persistor.PTFileModelPersistor", "args": args}


def fedavg() -> tuple[dict, list[dict]]:
    """FLARE's FedAvg of today; its task is ``train``."""
    args = {"num_clients": 2, "num_rounds": 2, "persistor_id": "weights"}
    workflow = {"id": "fedavg", "path": "nvflare.app_common.workflows.fedavg.FedAvg", "args": args}
    return workflow, [persistor("weights")]


def scatter_and_gather() -> tuple[dict, list[dict]]:
    """The workflow of NVIDIA's own MONAI examples, with the mean of differences."""
    common = "nvflare.app_common"
    args = {"min_clients": 2, "num_rounds": 2, "wait_time_after_min_received": 0, "train_task_name": "differences"}
    parts = {"aggregator_id": "mean", "persistor_id": "differences", "shareable_generator_id": "generator"}
    path = f"{common}.workflows.scatter_and_gather.ScatterAndGather"
    workflow = {"id": "scatter_and_gather", "path": path, "args": {**args, **parts}}
    generator = f"{common}.shareablegenerators.full_model_shareable_generator.FullModelShareableGenerator"
    mean = f"{common}.aggregators.intime_accumulate_model_aggregator.InTimeAccumulateWeightedAggregator"
    components = [{"id": "generator", "path": generator, "args": {}}]
    components.append({"id": "mean", "path": mean, "args": {"expected_data_kind": "WEIGHT_DIFF"}})
    return workflow, [persistor("differences"), *components]


def client(site: str, task: str, *, key_metric: str, send_weight_diff: bool) -> tuple[dict, dict]:
    """The executor of a task, and its own :class:`SamFedAlgo`."""
    executor = {
        "path": "monai_nvflare.client_algo_executor.ClientAlgoExecutor",
        "args": {"client_algo_id": f"algo_{task}", "key_metric": key_metric, "train_task": task},
    }
    kwargs = {name: {"site": site} for name in ("train_kwargs", "eval_kwargs")}
    args = {"bundle_root": str(BUNDLE), "vetted": True, "send_weight_diff": send_weight_diff, **kwargs}
    algo = {"id": f"algo_{task}", "path": "samfed_monai.federation.client.SamFedAlgo", "args": args}
    return {"tasks": [task], "executor": executor}, algo


def apps() -> dict[str, dict]:
    """Configurations of the server and the sites, which run both workflows, one after the other."""
    found = {}
    for site in SITES:
        # FedAvg of FLARE 2.9 takes no answer of ClientAlgoExecutor that has a key metric: it sends a number, not a dict
        parts = [client(site, "train", key_metric="none", send_weight_diff=False)]
        parts.append(client(site, "differences", key_metric="dice", send_weight_diff=True))
        executors, algos = (list(each) for each in zip(*parts, strict=True))
        found[site] = {"executors": executors, "components": algos}
    (first, firsts), (second, seconds) = fedavg(), scatter_and_gather()
    return {"server": {"workflows": [first, second], "components": [*firsts, *seconds]}, **found}


def test_two_rounds_of_each_of_flares_own_controllers_with_client_algo_executor(tmp_path):
    job = tmp_path / "job"
    for name, config in apps().items():
        (job / name / "config").mkdir(parents=True)
        path = job / name / "config" / f"config_fed_{'server' if name == 'server' else 'client'}.json"
        path.write_text(json.dumps({"format_version": 2, **config}))
    meta = {
        "name": "toy",
        "deploy_map": {name: ["server" if name == "server" else name] for name in ("server", *SITES)},
    }
    (job / "meta.json").write_text(json.dumps({**meta, "resource_spec": {}, "min_clients": 2}))
    workspace = tmp_path / "ws"
    (workspace / "startup").mkdir(parents=True)  # without it the simulator clears local/ as well
    merge_allow_list(workspace / "local", CLASSES)
    command = [sys.executable, "-m", "nvflare.private.fed.app.simulator.simulator", str(job), "-w", str(workspace)]
    done = subprocess.run(
        [*command, "-c", ",".join(SITES), "-t", "2"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    log = done.stdout + done.stderr
    assert "exception" not in log.lower(), log[-4000:]
    for name in ("weights", "differences"):
        (model,) = workspace.rglob(f"{name}.pt")
        weights = torch.load(model, weights_only=True)["model"]
        assert weights.keys() == ToyNet().state_dict().keys()
        trained = {name: torch.as_tensor(value) for name, value in weights.items()}
        assert trained["1.num_batches_tracked"] == 4, "two rounds of two steps at either site"
        assert all(bool(torch.isfinite(tensor).all()) for tensor in trained.values())
