"""Client algorithms that work on a trainer, on a network of six numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.engines import SupervisedTrainer
from torch import Tensor, nn

#: Weights of a site and of the server, and what a site's images ask for, of methods that mix the two.
SITE, SERVER, WANTED = [1.0, 1.0, 1.0, 1.0, 2.0, 2.0], [0.0, 1.0, 2.0, 3.0, 4.0, -2.0], [0.0, 0.0, 0.0, 0.0, 2.0, -2.0]


class Six(nn.Module):
    """``a`` of four numbers, then ``b`` of two; the forward pass returns all six for any input."""

    def __init__(self, numbers: Sequence[float]) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(numbers[:4]))
        self.b = nn.Parameter(torch.tensor(numbers[4:]))

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([self.a, self.b]).expand(len(images), 6)


def six(numbers: Sequence[float]) -> dict[str, Tensor]:
    """Weights of :class:`Six`."""
    return {name: tensor.detach() for name, tensor in Six(numbers).state_dict().items()}


def numbers_of(weights: Mapping[str, Tensor]) -> list[float]:
    """The six numbers."""
    return [*weights["a"].tolist(), *weights["b"].tolist()]


def six_trainer(network: nn.Module, optimizer: Any, handlers: Sequence[Any], target: Sequence[float], steps: int = 1):
    """A trainer; its loss is the distance of the six numbers from ``target``."""
    items = [{"image": torch.zeros(1), "label": torch.tensor(target)}] * steps
    return SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=torch.utils.data.DataLoader(items, batch_size=1),  # type: ignore[arg-type]
        network=network,
        optimizer=optimizer,
        # of one item; its gradient is the difference
        loss_function=lambda prediction, target: 0.5 * (prediction - target).square().sum(dim=1).mean(),
        train_handlers=list(handlers),
        decollate=False,
    )
