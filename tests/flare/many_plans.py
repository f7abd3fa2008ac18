"""Many runs in one job of FLARE, one after the other: FLARE and its clients take longer to start than a small run.

The job holds a plan for each, ``config/<name>/samfed_plan.json``; the run's name, which goes with every request, says
which one it is. The site files of sites have a ``runs_dir``; the server's has the same folder as ``output_dir``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from samfed_monai.flare.controller import FederationController, run_server
from samfed_monai.flare.site_file import PLAN


class ManyController(FederationController):
    """Runs every plan of the job into a folder of its name, by the controller's own requests."""

    def federate(self, folder: Path) -> None:
        for plan in sorted(self.job_config().glob(f"*/{PLAN}")):
            self.run_name = plan.parent.name
            given: dict[str, Any] = {"kit": self.kit_folder(), "job_config": plan.parent, "post": self.make_post()}
            run_server(folder / self.run_name, **given, opened=lambda transport: setattr(self, "transport", transport))
