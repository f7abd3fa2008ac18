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
pytest.importorskip("monai_nvflare", reason="make test installs monai-nvflare, without its pin of an older nvflare")

# FLARE builds no class of a job that the installation's local/resources.json does not allow.
CLASSES = ("monai_nvflare.", "nvflare.app_opt.", "nvflare.app_common.", "samfed_monai.", "tests.federation.toys.")
SITES = ("site-1", "site-2")
PYTORCH = "nvflare.app_opt.pt"


def persistor() -> dict:
    args = {"model": {"path": "tests.federation.toys.ToyNet", "args": {}}}
    return {"id": "persistor", "path": f"{PYTORCH}.file_model_persistor.PTFileModelPersistor", "args": args}


def fedavg() -> dict:
    """FLARE's FedAvg of today."""
    args = {"num_clients": 2, "num_rounds": 2, "persistor_id": "persistor"}
    workflow = {"id": "fedavg", "path": "nvflare.app_common.workflows.fedavg.FedAvg", "args": args}
    return {"workflows": [workflow], "components": [persistor()]}


def scatter_and_gather() -> dict:
    """The workflow of NVIDIA's own MONAI examples, with the mean of differences."""
    common = "nvflare.app_common"
    args = {"min_clients": 2, "num_rounds": 2, "wait_time_after_min_received": 0}
    parts = {"aggregator_id": "mean", "persistor_id": "persistor", "shareable_generator_id": "generator"}
    path = f"{common}.workflows.scatter_and_gather.ScatterAndGather"
    workflow = {"id": "fedavg", "path": path, "args": {**args, **parts, "train_task_name": "train"}}
    generator = f"{common}.shareablegenerators.full_model_shareable_generator.FullModelShareableGenerator"
    mean = f"{common}.aggregators.intime_accumulate_model_aggregator.InTimeAccumulateWeightedAggregator"
    components = [{"id": "generator", "path": generator, "args": {}}]
    components.append({"id": "mean", "path": mean, "args": {"expected_data_kind": "WEIGHT_DIFF"}})
    return {"workflows": [workflow], "components": [persistor(), *components]}


def app(site: str, *, key_metric: str, send_weight_diff: bool) -> dict:
    executor = {
        "path": "monai_nvflare.client_algo_executor.ClientAlgoExecutor",
        "args": {"client_algo_id": "algo", "key_metric": key_metric},
    }
    kwargs = {name: {"site": site} for name in ("train_kwargs", "eval_kwargs")}
    args = {"bundle_root": str(BUNDLE), "vetted": True, "send_weight_diff": send_weight_diff, **kwargs}
    algo = {"id": "algo", "path": "samfed_monai.federation.client.SamFedAlgo", "args": args}
    return {"executors": [{"tasks": ["train"], "executor": executor}], "components": [algo]}


@pytest.mark.parametrize(
    ("server", "key_metric", "send_weight_diff"),
    [
        # FedAvg of FLARE 2.9 takes no answer of ClientAlgoExecutor that has a key metric: it sends a number, not a dict
        (fedavg(), "none", False),
        (scatter_and_gather(), "dice", True),
    ],
    ids=["FedAvg", "differences"],
)
def test_two_rounds_of_flares_own_controllers_with_client_algo_executor(tmp_path, server, key_metric, send_weight_diff):
    job = tmp_path / "job"
    clients = {name: app(name, key_metric=key_metric, send_weight_diff=send_weight_diff) for name in SITES}
    for name, config in {"server": server, **clients}.items():
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
    models = sorted(workspace.rglob("FL_global_model.pt"))
    assert models, log[-4000:]
    assert "exception" not in log.lower(), log[-4000:]
    weights = torch.load(models[0], weights_only=True)["model"]
    assert weights.keys() == ToyNet().state_dict().keys()
    trained = {name: torch.as_tensor(value) for name, value in weights.items()}
    assert trained["1.num_batches_tracked"] == 4, "two rounds of two steps at either site"
    assert all(bool(torch.isfinite(tensor).all()) for tensor in trained.values())
