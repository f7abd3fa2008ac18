"""FLARE's own FedAvg in its simulator: ``recipe.py WORKSPACE ROUNDS MEGABYTES SITES [INTERVAL]``.

``INTERVAL`` is the time in seconds between two requests of a site for a task; FLARE's default is 2.
"""

from __future__ import annotations

import sys

from nvflare.app_opt.pt.recipes import FedAvgRecipe
from nvflare.recipe import SimEnv

workspace, rounds, megabytes, sites = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
recipe = FedAvgRecipe(
    name="plain",
    model={"class_path": "on_flare.payload.Payload", "args": {"megabytes": megabytes}},
    min_clients=sites,
    num_rounds=rounds,
    train_script="plain.py",
    launch_external_process=True,
    command=sys.executable + " -u",
)
if len(sys.argv) > 5:
    recipe.add_server_config({"server": {"task_request_interval": float(sys.argv[5])}})
recipe.execute(SimEnv(clients=[f"site-{number + 1}" for number in range(sites)], workspace_root=workspace))
