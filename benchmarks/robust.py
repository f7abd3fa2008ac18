"""Effect of dishonest sites on a model, with FedAvg and with each robust rule: Dice on rendered skin images.

Eight sites with labels train a small MONAI U-Net for a few rounds; the appearance of images differs between sites. One
or two sites attack in every round. Strategies are the package's own, with the default guard (a step of at most ten
times the model's norm). The result is a table in Markdown. It compares rules and does not predict results at hospitals:
images are rendered and 32 px wide, and no attack is adapted to the rule.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from monai.losses import DiceCELoss
from monai.networks.nets import BasicUNet
from torch import Tensor
from torch.nn import functional

from samfed_monai.core.seeds import derive_seed
from samfed_monai.data.synthetic import look_of, render_scene
from samfed_monai.methods.coordinate_median import CoordinateMedian
from samfed_monai.methods.fedavg import FedAvg
from samfed_monai.methods.krum import Krum
from samfed_monai.methods.norm_clipping import NormClipping
from samfed_monai.methods.trimmed_mean import TrimmedMean
from samfed_monai.protocol import Kind, Message, MessageRefused, Server, Strategy, UpdateGuard

Weights = dict[str, Tensor]
Images = tuple[Tensor, Tensor]
SIZE = 64  # pixels of rendered images; halved before training

RULES: dict[str, Callable[[], Strategy]] = {
    "FedAvg": FedAvg,
    "median": CoordinateMedian,
    "trimmed mean, 1/4": lambda: TrimmedMean(trim=0.25),
    "Multi-Krum, 2": lambda: Krum(faulty=2),
    "norm clipping": NormClipping,
}


def step(old: Weights, new: Weights, factor: float) -> Weights:
    """``old + factor (new - old)``; integers are unchanged, and variances made positive, since others are refused."""
    moved = {
        name: old[name] + factor * (tensor - old[name]) if tensor.is_floating_point() else tensor
        for name, tensor in new.items()
    }
    return {name: values.abs() if name.endswith("_var") else values for name, values in moved.items()}


def noise(old: Weights, new: Weights, random: torch.Generator) -> Weights:
    """A step in a random direction, ten times as long as the honest step."""
    floats = [name for name, tensor in new.items() if tensor.is_floating_point()]
    drawn = {name: torch.randn(new[name].shape, generator=random) for name in floats}
    honest = math.sqrt(sum(float((new[name] - old[name]).square().sum()) for name in floats))
    length = math.sqrt(sum(float(values.square().sum()) for values in drawn.values()))
    moved = {name: old[name] + 10 * honest / length * values for name, values in drawn.items()}
    # negative variances are refused
    return {**new, **{name: values.abs() if name.endswith("_var") else values for name, values in moved.items()}}


ATTACKS = {
    "scaled (step x 50)": lambda old, new, _: step(old, new, 50.0),
    "signs flipped (step x -4)": lambda old, new, _: step(old, new, -4.0),
    "noise (10 steps long)": noise,
    "labels flipped": lambda old, new, _: new,  # the masks are flipped before training
}


def images_of(site: int, first: int, count: int, seed: int) -> Images:
    """(N, 3, H, W) images in [0, 1] and (N, 1, H, W) masks in the appearance of one site."""
    look, pairs = look_of("skin", site, seed), []
    for index in range(first, first + count):
        rng = np.random.default_rng(derive_seed(seed, "robust", site, index))
        image, mask = render_scene(rng, (SIZE, SIZE), look)
        pairs.append((torch.from_numpy(image.copy()).movedim(-1, 0) / 255, torch.from_numpy(mask.copy())[None] > 0))
    images, masks = (torch.stack([pair[side] for pair in pairs]).float() for side in (0, 1))
    return functional.avg_pool2d(images, 2), (functional.avg_pool2d(masks, 2) >= 0.5).float()


def network(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    return BasicUNet(
        spatial_dims=2, in_channels=3, out_channels=1, features=(8, 8, 16, 16, 32, 8), norm="batch", dropout=0.0
    )


def trained(net: torch.nn.Module, weights: Weights, data: Images, steps: int, seed: int) -> Weights:
    """Weights after a site's training in one round, starting from ``weights``."""
    net.load_state_dict(weights)
    net.train()
    images, masks = data
    optimizer, loss = torch.optim.Adam(net.parameters(), lr=3e-3), DiceCELoss(sigmoid=True)
    random = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        batch = torch.randperm(len(images), generator=random)[:8]
        optimizer.zero_grad()
        loss(net(images[batch]), masks[batch]).backward()
        optimizer.step()
    return {name: tensor.detach().clone() for name, tensor in net.state_dict().items()}


@torch.no_grad()
def dice(net: torch.nn.Module, weights: Weights, data: Images, *, batch_statistics: bool = False) -> float:
    """Mean Dice of the images; 0 for a model with values that are not finite.

    Args:
        net, weights, data: network, its weights, and images with masks.
        batch_statistics: normalise with the statistics of ``data`` instead of the running statistics.
    """
    net.load_state_dict(weights)
    found = net.train(batch_statistics)(data[0]).sigmoid() > 0.5
    both, sides = (found * data[1]).sum(dim=(1, 2, 3)), found.sum(dim=(1, 2, 3)) + data[1].sum(dim=(1, 2, 3))
    return float(torch.where(sides > 0, 2 * both / sides.clamp(min=1), torch.ones_like(sides)).mean())


def federated(rule: str, attack: str, attackers: int, sites: list[Images], test: Images, options: Any) -> float:
    """Dice on ``test`` after all rounds."""
    net, names = network(options.seed), [f"site-{number + 1}" for number in range(len(sites))]
    start = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    strategy = RULES[rule]().attach(Server(names, options.rounds, weights=start, guard=UpdateGuard()))
    for round in range(options.rounds):
        messages = strategy.configure(round)
        for number, name in enumerate(names):
            old: Mapping[str, Tensor] = {key: tensor.clone() for key, tensor in messages[name].tensors.items()}
            dishonest, (images, masks) = number < attackers, sites[number]
            data = (images, 1 - masks) if dishonest and attack == "labels flipped" else (images, masks)
            seed = derive_seed(options.seed, name, round)
            new = trained(net, dict(old), data, options.steps, seed)
            if dishonest:
                new = ATTACKS[attack](old, new, torch.Generator().manual_seed(seed))
            message = Message(Kind.WEIGHTS, name, round, options.rounds, n=len(images), tensors=new)
            try:  # as the server does with each reply
                message.check(up=True, like=strategy.expected(name), site=name, round=round)
                strategy.take(round, name, message)
            except MessageRefused:
                continue
        strategy.finish(round)
    return dice(net, strategy.global_weights, test, batch_statistics=options.batch_statistics)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, default=8)
    parser.add_argument("--attackers", type=int, nargs="+", default=[1, 2], help="numbers of dishonest sites")
    parser.add_argument("--images", type=int, default=24, help="training images per site")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=5, help="steps per site and round")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rules", nargs="+", choices=RULES, default=list(RULES), metavar="RULE", help="columns")
    parser.add_argument("--attacks", nargs="+", choices=ATTACKS, default=list(ATTACKS), metavar="ATTACK", help="rows")
    parser.add_argument(
        "--batch-statistics", action="store_true", help="normalise test images with their own statistics"
    )
    options = parser.parse_args()
    sites = [images_of(number, 0, options.images, options.seed) for number in range(options.sites)]
    tests = [images_of(number, 100_000, 8, options.seed) for number in range(options.sites)]
    test = (torch.cat([images for images, _ in tests]), torch.cat([masks for _, masks in tests]))
    rules = [rule for rule in options.rules if options.sites >= getattr(RULES[rule](), "least_sites", 1)]
    print(f"| attack | of {options.sites} sites | {' | '.join(rules)} |")
    print("| --- | --- |" + " --- |" * len(rules))
    for attack, attackers in [
        ("none", 0),
        *((attack, count) for attack in options.attacks for count in options.attackers),
    ]:
        found = [federated(rule, attack, attackers, sites, test, options) for rule in rules]
        print(f"| {attack} | {attackers} | {' | '.join(f'{value:.3f}' for value in found)} |", flush=True)


if __name__ == "__main__":
    main()
