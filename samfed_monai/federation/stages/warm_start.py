"""The global network before round 0: trained on the public labelled images alone (docs/method.md, HSSF's warm-up)."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from samfed_monai.config.variants import find_variant
from samfed_monai.data import DataList, public_hash
from samfed_monai.data.public_set import read_as
from samfed_monai.federation.progress import Progress
from samfed_monai.federation.random_state import own_random_state
from samfed_monai.federation.stages.base_sam import base_sam
from samfed_monai.federation.stages.made_once import made_once
from samfed_monai.federation.stages.workflow_config import WorkflowConfig
from samfed_monai.io import safe_load, save_tensors, sha256_file
from samfed_monai.networks.key_patterns import network_split
from samfed_monai.seeds import derive_seed

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

SERVER = "server"


def warm_start(
    config: WorkflowConfig,
    *,
    datalist: DataList,
    steps: int,
    seed: int,
    cache_dir: str | Path,
    trunk: Path | None = None,
) -> tuple[dict[str, Tensor], str]:
    """Trains the client network on the public set for ``steps`` optimiser steps, or finds what it trained before.

    The same ``train.json`` as at the sites runs here, with the variant ``dp_only`` in place of the run's own, so every
    variant of a comparison starts from the same weights.

    Args:
        config: the client's ``train.json`` with the run's overrides and what its variant says of the warm start.
        datalist: the frozen list; only its public part is read.
        steps: optimiser steps; with 0, or without public images, the network stays as it is built with ``seed``.
        seed: the run's seed.
        cache_dir: where finished weights are kept, by the hash of everything that determines them.
        trunk: an adapter whose trunk the network's encoder starts from, in place of its own ``encoder_weights``.

    Returns:
        Names to tensors of the network, frozen ones left out, and their fingerprint (hexadecimal).
    """
    config = config.with_files(str(find_variant(config.bundle_root, "dp_only"))).without_lost()
    public = public_hash(datalist)
    steps = steps if datalist.public else 0
    sam = base_sam(config, config.value("network_name"))  # its frozen weights are not in what is kept
    more = read_as(datalist) | ({} if sam is None else {"base_sam": sam})
    more |= {} if trunk is None else {"trunk": sha256_file(trunk)}
    key = config.fingerprint(public=public, steps=steps, seed=seed, **more)
    path = Path(cache_dir) / "warm_start" / f"{key[:16]}.safetensors"
    with made_once(path) as exists:
        if exists:
            logger.info("warm start: reusing %s", path.name)
            return safe_load(path), key
        if datalist.public:
            logger.info("warm start: %d steps on %d public images", steps, len(datalist.public))
        else:
            logger.info("warm start: none, the list has no public images")
        started = config if trunk is None else config.with_overrides({"encoder_weights": str(trunk)})
        weights = _train(started, steps, seed)
        save_tensors(path, weights, {"steps": str(steps), "seed": str(seed), "public": public})
    return weights, key


def _train(config: WorkflowConfig, steps: int, seed: int) -> dict[str, Tensor]:
    from monai.bundle import ConfigWorkflow
    from monai.networks.utils import get_state_dict

    with own_random_state(derive_seed(seed, SERVER, "initialisation")):
        workflow = ConfigWorkflow(
            config_file=config.paths(),
            logging_file=False,
            workflow_type="train",
            **{
                **config.overrides,
                "site": SERVER,
                "local_steps": max(steps, 1),
                "epochs": 1,
                "seed": seed,
                "standalone": {},
            },
        )
        workflow.initialize()
        trainer = workflow.trainer
        if steps:
            with Progress().iterations(trainer):
                trainer.run()
        frozen = set(network_split(trainer.network).frozen)  # of a checkpoint that every machine has
        state = get_state_dict(trainer.network)
        weights = {name: tensor.detach().cpu().clone() for name, tensor in state.items() if name not in frozen}
        workflow.finalize()
    return weights
