"""MONAI's own trainer around a SAM of two blocks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from monai.engines import SupervisedTrainer

from samfed_monai.networks import SamNetwork
from tests.handlers.toy import toy_loader, toy_trainer
from tests.networks.sam.tiny import tiny_network, wake


def sam_trainer(
    handlers: Iterable[Any], *, network: SamNetwork | None = None, optimizer: Any = None, steps: int = 4
) -> SupervisedTrainer:
    """AdamW with a weight decay too large to overlook."""
    if network is None:
        network = tiny_network()
        wake(network)
    if optimizer is None:
        optimizer = torch.optim.AdamW(network.parameter_groups(), lr=1e-3, weight_decay=0.5)
    loader = toy_loader(keys=("image", "label"))
    return toy_trainer(handlers, network=network, loader=loader, optimizer=optimizer, steps=steps, decollate=False)
