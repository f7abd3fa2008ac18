"""A site under FLARE's own FedAvg, without this package's controller."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from samfed_monai.config import find_bundle
from samfed_monai.data import DataList
from samfed_monai.federation.plan import Paths
from samfed_monai.flare.local import write_site_files
from samfed_monai.networks import client_network

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("forked")]

RECIPE = """
import shutil, sys
from nvflare.app_opt.pt.recipes import FedAvgRecipe
from nvflare.recipe import SimEnv, set_per_site_config

shutil.copy(sys.argv[2], "plain_client.py")
words = (
    "--bundle samfed_skin --variant no_sam --network_name basic_unet --image_size 32 --batch_size 2"
    " --local_steps 2 --amp false"
)
recipe = FedAvgRecipe(
    name="plain",
    model={"class_path": "samfed_monai.networks.client_network", "args": {"name": "basic_unet"}},
    min_clients=2,
    num_rounds=1,
    train_script="plain_client.py",
    train_args=words,
    launch_external_process=True,
    command=sys.executable + " -u",
    key_metric="dice",
)
set_per_site_config(recipe, {"site-1": {}, "site-2": {"train_args": words + " --monai"}})
recipe.execute(SimEnv(clients=["site-1", "site-2"], workspace_root=sys.argv[1]))
"""


def test_flare_fedavg_averages_both_plain_clients(three_sites, tmp_path):
    listed = DataList.load(three_sites / "list.json")
    paths = Paths(find_bundle("samfed_skin"), three_sites / "list.json", three_sites, tmp_path / "run")
    files = write_site_files(tmp_path / "sites", listed, paths, ("site-1", "site-2"), threads=1)
    own = os.environ | {"SAMFED_SITE": str(files), "SAMFED_FLARE_MARK": "", "OMP_NUM_THREADS": "1"}
    script = Path(__file__).parents[2] / "benchmarks" / "on_flare" / "plain_client.py"
    command = [sys.executable, "-c", RECIPE, str(tmp_path / "ws"), str(script)]
    done = subprocess.run(command, env=own, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
    models = sorted(Path(tmp_path / "ws").rglob("FL_global_model.pt"))
    assert models, done.stdout[-3000:] + done.stderr[-2000:]
    configs = {path.read_text() for path in (tmp_path / "ws").rglob("config_fed_client.json")}
    assert {"--monai" in config for config in configs} == {True, False}, "one site has each client"
    weights = torch.load(models[0], weights_only=True)["model"]
    assert weights.keys() == client_network("basic_unet").state_dict().keys()
    assert all(bool(torch.isfinite(torch.as_tensor(value)).all()) for value in weights.values())
