"""A default training step against a plain PyTorch loop with the same passes: the cost of handlers, guides and terms.

The plain loop uses the default's network (its first layers are not trained), loss, optimizer and precision, and batches
that are read beforehand. It computes labelled images and strong views with gradients, weak views by the round's network
without gradients, and one backward pass. The same loop without the round's network shows the cost of that pass. The
default with all layers trained shows what freezing the first layers saves.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import Figure, record, side_by_side
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits
from training import Training, prepare

from samfed_monai.losses import StructureLoss
from samfed_monai.networks.inferer import autocast


def softened(probability: torch.Tensor, temperature: float = 2.0) -> torch.Tensor:
    chance = probability.clamp(1e-4, 1 - 1e-4)
    return torch.sigmoid(torch.logit(chance) / temperature)


class PlainLoop:
    """A plain loop; a call takes one step for each pair of batches.

    Args:
        training: trainer whose network and batches it uses.
        steps: number of batches, which are read once.
        guided: whether the round's network runs on the weak views.
    """

    def __init__(self, training: Training, *, steps: int, guided: bool = True) -> None:
        parsed = training.parser.get_parsed_content
        self.network: nn.Module = training.trainer.network
        self.round = deepcopy(self.network).eval()
        self.loss, self.guided = StructureLoss(), guided
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-5, fused=True)
        loaders = (parsed("train#dataloader"), parsed("unlabelled#dataloader"))
        self.batches = [pair for pair, _ in zip(zip(*loaders, strict=False), range(steps), strict=False)]

    def __call__(self) -> None:
        for labelled, unlabelled in self.batches:
            self.step(labelled, unlabelled)

    def step(self, labelled: dict[str, Any], unlabelled: dict[str, Any]) -> None:
        self.network.train()
        self.optimizer.zero_grad(set_to_none=True)
        sam = own = unlabelled["teacher"]
        with autocast("cpu", "auto"):
            first, strong = self.network(labelled["image"]), self.network(unlabelled["image_strong"])
            if self.guided:
                with torch.no_grad():
                    own = torch.sigmoid(self.round(unlabelled["image"]).float())
        first, strong = first.float(), strong.float()
        loss = self.loss(first, labelled["label"]) + self.loss(strong, (sam + own) / 2)
        for guide, weight in ((sam, 1.0), (own, 0.1)):
            target = softened(guide)
            entropy = -(target * torch.log(target) + (1 - target) * torch.log1p(-target))
            loss = loss + 4 * weight * (binary_cross_entropy_with_logits(strong / 2, target) - entropy.mean())
        loss.backward()
        self.optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=224, help="size of the student's images in pixels")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=4, help="steps per timed call")
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    timed = partial(side_by_side, repeats=options.repeats, clock=time.process_time)
    with tempfile.TemporaryDirectory() as folder:
        settings = prepare(Path(folder), images=options.batch * options.steps)
        settings |= {"image_size": options.size, "batch_size": options.batch, "local_steps": options.steps}
        settings |= {"encoder_weights": None}
        default, all_layers = (Training({**settings, "network_def#frozen_stages": stages}) for stages in (2, 0))
        same, without = (PlainLoop(default, steps=options.steps, guided=guided) for guided in (True, False))
        what = (
            f"mobile_sam_fpn, {options.size} px, {options.batch} labelled and {options.batch} unlabelled images: a step"
        )
        times, of_round, of_layers = timed(same, default), timed(without, same), timed(all_layers, default)
    figures = [
        Figure(f"{what} of the default against a plain loop with the same passes", times["ratio"], 1.05, details=times),
        Figure("that plain loop against one without the round's network", of_round["ratio"], details=of_round),
        Figure("that step against one with all layers trained", of_layers["ratio"], 1.0, details=of_layers),
    ]
    record(__file__, figures)


if __name__ == "__main__":
    main()
