"""The MONAI FL client of one site."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

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


def make_clients(
    config: WorkflowConfig,
    sites: list[str],
    *,
    seed: int,
    output_dir: str | Path,
    of_site: Callable[[str], Mapping[str, Any]],
    keep_optimizer: bool,
) -> dict[str, SamFedAlgo]:
    """Initialized clients of the sites that train, by name.

    The handlers of ``train.json -> standalone`` (validation, saving, tables of a site that trains alone) are left out:
    in a federation the controller does what they do.

    Args:
        config: ``train.json`` with the variant and the run's overrides.
        sites: their names.
        seed: the run's seed.
        output_dir: per-image scores and masks of the best and the last model are written below it, at the site.
        of_site: further overrides of one site (its soft-mask store).
        keep_optimizer: keep each site's optimizer moments from round to round.
    """
    logging.getLogger(SamFedAlgo.__module__).setLevel(logging.WARNING)  # MONAI tells ten things a round, all known
    clients = {}
    for site in sites:
        overrides = {**config.overrides, **of_site(site), "site": site, "seed": seed, "standalone": {}}
        client = SamFedAlgo(
            config.bundle_root,
            vetted=True,
            keep_optimizer=keep_optimizer,
            output_dir=output_dir,
            local_epochs=1,
            config_train_filename=list(config.files),
            config_evaluate_filename=[*config.files, "configs/evaluate.json"],
            train_kwargs=dict(overrides),
            eval_kwargs=dict(overrides),
        )
        client.initialize({ExtraItems.CLIENT_NAME: site, "seed": seed})
        clients[site] = client
    return clients


def make_evaluators(
    config: WorkflowConfig, sites: list[str], *, seed: int, output_dir: str | Path
) -> dict[str, SamFedAlgo]:
    """Initialized clients of hospitals that take no part: they evaluate what they are sent, and cannot train."""
    clients = {}
    for site in sites:
        client = SamFedAlgo(
            config.bundle_root,
            vetted=True,
            output_dir=output_dir,
            config_train_filename=None,
            config_evaluate_filename=[*config.files, "configs/evaluate.json"],
            eval_kwargs={**config.overrides, "site": site, "seed": seed, "standalone": {}},
        )
        client.initialize({ExtraItems.CLIENT_NAME: site, "seed": seed})
        clients[site] = client
    return clients
