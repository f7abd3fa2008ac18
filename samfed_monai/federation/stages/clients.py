"""The MONAI FL client of one site."""

from __future__ import annotations

import logging
from pathlib import Path

from monai.fl.utils.constants import ExtraItems

from samfed_monai.federation.algo import SamFedAlgo
from samfed_monai.federation.stages.workflow_config import WorkflowConfig


def make_client(
    config: WorkflowConfig,
    site: str,
    *,
    seed: int,
    output_dir: str | Path,
    trains: bool = True,
    keep_optimizer: bool = True,
) -> SamFedAlgo:
    """An initialized client.

    The handlers of ``train.json -> standalone`` (validation, saving, tables of a site that trains alone) are left out:
    in a federation the controller does what they do.

    Args:
        config: ``train.json`` with the variant and the overrides of the run and of this site.
        site: its name.
        seed: the run's seed.
        output_dir: per-image scores and masks of the best and the last model are written below it, at the site.
        trains: False for a hospital that takes no part: it evaluates what it is sent, and cannot train.
        keep_optimizer: keep the optimizer's moments from round to round.
    """
    logging.getLogger(SamFedAlgo.__module__).setLevel(logging.WARNING)  # MONAI tells ten things a round, all known
    config = config.filled_by_the_server()
    overrides = {**config.overrides, "site": site, "seed": seed, "standalone": {}}
    client = SamFedAlgo(
        config.bundle_root,
        vetted=True,
        keep_optimizer=keep_optimizer,
        output_dir=output_dir,
        local_epochs=1,
        config_train_filename=list(config.files) if trains else None,
        config_evaluate_filename=[*config.files, "configs/evaluate.json"],
        train_kwargs=dict(overrides),
        eval_kwargs=dict(overrides),
    )
    client.initialize({ExtraItems.CLIENT_NAME: site, "seed": seed})
    return client
