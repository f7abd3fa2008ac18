"""Small targets of attacks: coloured fields with a bright disc, and networks of two layers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from samfed_monai.attacks import Images, Options, Target

QUICK = Options(images=16, shadows=16, shadow_steps=0, steps=2, batch=3)


def scenes(count: int, *, seed: int, size: int = 16) -> tuple[Tensor, Tensor]:
    """Smooth coloured fields with a bright disc, and the disc: (N, 3, S, S) and (N, 1, S, S)."""
    random = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=random)
    images = nn.functional.interpolate(coarse, (size, size), mode="bilinear", align_corners=True) * 0.7
    middle = torch.rand(count, 2, 1, 1, generator=random) * 0.5 + 0.25
    y, x = torch.meshgrid(torch.linspace(0, 1, size), torch.linspace(0, 1, size), indexing="ij")
    labels = ((y - middle[:, :1]) ** 2 + (x - middle[:, 1:]) ** 2 < 0.03).float()
    return (images + 0.3 * labels).clamp(0, 1), labels


def plain_net(width: int = 16) -> nn.Module:
    """Without batch norm; its last convolution is called as a network's head is."""
    net = nn.Sequential(nn.Conv2d(3, width, 5, padding=2), nn.Sigmoid())
    net.add_module("head", nn.Conv2d(width, 1, 5, padding=2))
    return net


def leaky_net(width: int = 12, size: int = 16) -> nn.Module:
    """Sigmoids, a stride and a layer with a weight for each position: its gradients reveal images (LeNet)."""
    return nn.Sequential(
        nn.Conv2d(3, width, 5, padding=2, stride=2),
        nn.Sigmoid(),
        nn.Conv2d(width, width, 5, padding=2),
        nn.Sigmoid(),
        nn.Flatten(),
        nn.Linear(width * (size // 2) ** 2, size**2),
        nn.Unflatten(1, (1, size, size)),
    )


def norm_net(width: int = 16) -> nn.Module:
    """With a batch norm that is in training mode."""
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.Sigmoid(), nn.Conv2d(width, 1, 3, padding=1)
    )


def target(
    network: Callable[[], nn.Module] = plain_net, *, steps: int = 0, count: int = 16, size: int = 16, seed: int = 0
) -> Target:
    """A public set and one site, and a network that was trained on its images for ``steps``."""
    made = [scenes(count, seed=100 * seed + place, size=size) for place in range(3)]
    groups = [Images("public", True, *made[0]), Images("Basel", True, *made[1]), Images("Basel", False, *made[2])]
    torch.manual_seed(seed)
    net, loss = network(), nn.BCEWithLogitsLoss()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    images, labels = groups[1].images, groups[1].labels
    for _ in range(steps):
        optimizer.zero_grad()
        loss(net(images), labels).backward()
        optimizer.step()
    return Target(net.eval(), network, loss, groups, learning_rate=0.01, about={"run": "toy"})
