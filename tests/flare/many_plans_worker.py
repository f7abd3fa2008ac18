"""The process that trains, with the plan that is called as the run is, and a small SAM as ViT-B."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from samfed_monai.flare.site_file import PLAN, SiteFile
from samfed_monai.flare.worker import make_federated_site, serve
from samfed_monai.networks.sam.build import SAM_BUILDERS
from tests.flare.tiny_sam import encoder


def make_site(settings: dict[str, Any], files: SiteFile) -> Any:
    """The run's site, of the plan in the folder of its name."""
    plan = Path(settings["plan"])
    named = plan.parent / Path(settings["run_folder"]).name / PLAN
    return make_federated_site({**settings, "plan": str(named)}, files)


if __name__ == "__main__":
    SAM_BUILDERS._entries["vit_b"] = encoder
    serve(make_site)
