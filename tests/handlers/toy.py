"""A network of two convolutions and its trainer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedTrainer
from torch import nn

from samfed_monai.handlers import EndlessSampler
from samfed_monai.losses import StructureLoss
from samfed_monai.transforms import StrongViewd, WeakViewd

SIZE = 16


def toy_network(seed: int = 0) -> nn.Module:
    """3 channels to 1, with BatchNorm, so that running statistics can be watched."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 1, 1))


class Shown(nn.Module):
    """A network with an encoder and a head as attributes; images are predicted at their own size.

    Args:
        stride: of the feature map.
        channels: of the feature map.
        norm: batch norm behind the convolution.
    """

    def __init__(self, stride: int = 1, channels: int = 8, *, norm: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        convolution = nn.Conv2d(3, channels, 3, stride=stride, padding=1)
        self.encoder: nn.Module = nn.Sequential(convolution, nn.BatchNorm2d(channels)) if norm else convolution
        self.head, self.up = nn.Conv2d(channels, 1, 1), nn.Upsample(scale_factor=stride)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.decoded(self.encoder(image))

    def decoded(self, features: torch.Tensor) -> torch.Tensor:
        return self.up(self.head(features.relu()))


class DilatedEncoder(nn.Module):
    """Two maps of one size, as behind dilated convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 8, 1)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        found = self.first(image)
        return [found, self.last(found)]


class Dilated(nn.Module):
    """A network with an encoder that ends with two maps of one size."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.head = DilatedEncoder(), nn.Conv2d(8, 1, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(image)[-1].relu())


def toy_items(count: int, seed: int) -> list[dict[str, Any]]:
    """Images with a bright square, its mask as label, and a soft mask as the teacher's."""
    generator = torch.Generator().manual_seed(seed)
    items = []
    for index in range(count):
        label = torch.zeros(1, SIZE, SIZE)
        top, left = torch.randint(2, 8, (2,), generator=generator).tolist()
        label[:, top : top + 6, left : left + 6] = 1
        image = (0.3 + 0.4 * label + 0.1 * torch.rand(3, SIZE, SIZE, generator=generator)).clamp(0, 1)
        items.append({"image": image, "label": label, "teacher": 0.05 + 0.9 * label, "id": str(index)})
    return items


def toy_loader(count: int = 10, seed: int = 0, *, keys: Sequence[str] = ("image", "label", "teacher")) -> DataLoader:
    """Batches of four with random weak and strong views."""
    items = [{key: item[key] for key in keys} for item in toy_items(count, seed)]
    views = [WeakViewd(keys=("image", "label", "teacher")), StrongViewd()]
    from monai.transforms import Compose

    dataset = Dataset(items, Compose(views))
    return DataLoader(dataset, batch_size=4, sampler=EndlessSampler(dataset), num_workers=0)


def toy_trainer(
    handlers: Iterable[Any],
    *,
    network: nn.Module | None = None,
    loader: DataLoader | None = None,
    epochs: int = 1,
    steps: int = 3,
    learning_rate: float = 0.01,
    optimizer: torch.optim.Optimizer | None = None,
    **more: Any,
) -> SupervisedTrainer:
    """MONAI's own trainer; ``more`` are arguments of its class."""
    network = toy_network() if network is None else network
    return SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=epochs,
        train_data_loader=toy_loader() if loader is None else loader,
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), learning_rate) if optimizer is None else optimizer,
        loss_function=StructureLoss(kernel_size=3),
        epoch_length=steps,
        train_handlers=list(handlers),
        **more,
    )


def weights(network: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of all parameters and buffers."""
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Bit by bit."""
    return all(torch.equal(first[name], second[name]) for name in first)


def next_round(trainer: SupervisedTrainer, round: int, rounds: int, epochs: int = 1) -> None:
    """What a MONAI FL client does for a round."""
    trainer.state.round, trainer.state.rounds = round, rounds
    trainer.state.max_epochs = trainer.state.epoch + epochs
    trainer.run()
