"""Time that local experts add to a training step of SAM with LoRA, and time of the two decoupled stages."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from common import Figure, record, side_by_side

from samfed_monai.losses import StructureLoss, logits_kl
from samfed_monai.methods.pfedsam import load_balance
from samfed_monai.networks import AutocastInferer, SamNetwork, SamPath, build_sam, sam_outputs

TITLES = {"vit_t": "MobileSAM", "vit_b": "SAM ViT-B", "vit_l": "SAM ViT-L", "vit_h": "SAM ViT-H"}


class Step:
    """A supervised training step of SAM with random weights: forward, loss, backward, AdamW."""

    def __init__(self, base: str, size: int, batch: int, device: str, *, bf16: bool = False, **options: Any) -> None:
        torch.manual_seed(0)
        self.network = SamNetwork(build_sam(base, size=size), size, **options).to(device)
        self.groups = {group["name"]: group["params"] for group in self.network.parameter_groups()}
        self.optimizer = torch.optim.AdamW(self.network.parameter_groups(), lr=1e-4, fused=True)
        self.images = torch.rand(batch, 3, size, size, device=device)
        self.labels = (torch.rand(batch, 1, size, size, device=device) > 0.5).float()
        self.loss, self.device, self.inferer = StructureLoss(), device, AutocastInferer(bf16)

    def __call__(self, path: SamPath = SamPath.PERSONAL, *, mutual: bool = False) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        prediction = self.inferer(self.images, self.network, path=path)
        loss = self.loss(prediction, self.labels)
        routing = sam_outputs(prediction).routing
        if routing is not None:
            loss = loss + 0.01 * load_balance(routing.share, routing.probability)
        if mutual:
            with torch.no_grad():
                other = self.inferer(self.images, self.network, path=path.other)
            loss = loss + 0.5 * logits_kl(prediction, other)
        loss.backward()
        self.optimizer.step()
        if self.device == "cuda":
            torch.cuda.synchronize()

    def stage(self, path: SamPath) -> None:
        """A step of stage G (global path) or L (personal path), guided by the other path, whose weights are frozen."""
        frozen = self.groups["personal" if path is SamPath.GLOBAL else "shared"]
        for weight in frozen:
            weight.requires_grad_(False)
        self(path, mutual=True)
        for weight in frozen:
            weight.requires_grad_(True)


def compared(
    what: str, first: Callable[[], Any], second: Callable[[], Any], repeats: int, bound: float | None
) -> Figure:
    times = side_by_side(first, second, repeats=repeats, warm_up=2)
    return Figure(what, times["ratio"], bound=bound, details=times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bases", nargs="+", default=["vit_t", "vit_b"], choices=list(TITLES))
    parser.add_argument("--stages", nargs="*", default=["vit_t"], help="bases whose stages are also timed")
    parser.add_argument("--size", type=int, default=256, help="size of SAM's input in pixels")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    options = parser.parse_args()
    figures = []
    for base in options.bases:
        settings = base, options.size, options.batch, options.device
        lora, both, kept = Step(*settings, experts=0), Step(*settings), options.repeats
        where = f"{TITLES[base]}, {options.size} px, batch {options.batch}"
        figures.append(compared(f"{where}: step with LoRA + L-MoE against LoRA alone", lora, both, kept, 1.25))
        if base not in options.stages:
            continue
        for request, path in (("G", SamPath.GLOBAL), ("L", SamPath.PERSONAL)):
            what = f"{where}: step of stage {request}, including the pass of the other path, against LoRA alone"
            figures.append(compared(what, lora, partial(both.stage, path), kept, None))
        slim = Step(*settings, checkpointing=True)
        figures.append(compared(f"{where}: the same step with checkpointing against without", both, slim, kept, None))
    record(__file__, figures)


if __name__ == "__main__":
    main()
