"""MONAI's own trainer around a SAM of two blocks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from monai.engines import SupervisedTrainer

from samfed_monai.losses import StructureLoss
from samfed_monai.networks import SamNetwork
from tests.handlers.toy import toy_loader
from tests.networks.sam.tiny import tiny_network, wake


def sam_trainer(
    handlers: Iterable[Any],
    *,
    network: SamNetwork | None = None,
    steps: int = 4,
    epochs: int = 1,
    optimizer: Any = None,
) -> SupervisedTrainer:
    """AdamW with a weight decay too large to overlook."""
    if network is None:
        network = tiny_network()
        wake(network)
    if optimizer is None:
        optimizer = torch.optim.AdamW(network.parameter_groups(), lr=1e-3, weight_decay=0.5)
    return SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=epochs,
        train_data_loader=toy_loader(keys=("image", "label")),
        network=network,
        optimizer=optimizer,
        loss_function=StructureLoss(kernel_size=3),
        epoch_length=steps,
        train_handlers=list(handlers),
        decollate=False,
    )
