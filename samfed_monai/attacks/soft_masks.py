"""What soft masks of public images reveal where they leave a site instead of weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from samfed_monai.attacks.finding import Finding, Options, Shown
from samfed_monai.attacks.lira import train
from samfed_monai.attacks.membership import image_losses, separation
from samfed_monai.attacks.target import PUBLIC, Images, Target
from samfed_monai.core.errors import Problem, Refused
from samfed_monai.core.seeds import derive_seed

if TYPE_CHECKING:
    from torch import Tensor, nn


def attack_soft_masks(target: Target, options: Options) -> Finding:
    """Trains a copy of the network on its 8-bit masks of the public images, and asks the copy who was trained on.

    Masks of public images hold no pixel of a private one, so there is nothing to invert directly: what they tell of a
    site's images, they tell through what its network has learned. The copy is an attacker's means to ask for that.

    Raises:
        Refused: no public images.
    """
    public = target.group(PUBLIC, member=True)
    if public is None:
        raise Refused([Problem("soft_masks", found="no public images", expected="some: their masks are what is sent")])
    eight_bit = soft_masks(target.network, public)
    seed = derive_seed(options.seed, "copy")
    own = train(target, public, np.arange(len(public)), steps=options.shadow_steps, seed=seed, labels=eight_bit)
    rows: list[dict[str, Any]] = []
    for site in target.sites:
        members, others = target.group(site, member=True), target.group(site, member=False)
        if members is None or others is None:
            continue
        column = 0 if members.labels is not None and others.labels is not None else 1
        row: dict[str, Any] = {"site": site, "agreement_dice": round(overlap(own, target.network, members), 3)}
        for name, network in (("weights", target.network), ("masks", own)):
            one, two = (-image_losses(network, each)[:, column] for each in (members, others))
            found = separation(one, two, seed=options.seed)
            row |= {f"auc_{name}": found["auc"], f"interval_{name}": found["interval"]}
        rows.append(row)
    pixels = eight_bit[0].numel()
    shown = slice(0, min(4, len(public)))
    return Finding(
        "soft_masks",
        "Soft masks of the public images",
        f"Trains a copy of the network on {len(public)} public images and their masks ({options.shadow_steps} "
        "steps), and applies membership inference by loss to the copy.",
        f"{len(public)} masks of {pixels} pixels with 8 bits each, of images that the attacker has anyway; no pixel of "
        "a private image, no weight. The release filter checks that they are exactly the network's output.",
        rows,
        [
            *(_sentence(row) for row in rows),
            "`agreement dice` is the Dice between copy and network on the site's training images: masks reveal as much "
            "as the copy does, at most what access to the network itself reveals.",
            "Against reconstruction no defence is needed; against membership inference, differential privacy of the "
            "masks (`privacy#differential_privacy`), at the price of most of their use.",
        ],
        [
            Shown(
                "soft-masks",
                "Public images and their masks: all that an attacker receives.",
                {"public": public.images[shown], "masks": eight_bit[shown]},
            )
        ],
    )


def _sentence(row: dict[str, Any]) -> str:
    low = row["interval_masks"][0]
    words = "separates members from non-members" if low > 0.5 else "does not separate members from non-members"
    return (
        f"{row['site']}: a copy made from the masks {words} (AUC {row['auc_masks']:.2f}; the weights themselves "
        f"{row['auc_weights']:.2f})."
    )


def soft_masks(network: nn.Module, public: Images) -> Tensor:
    """Probabilities of public images as they travel, rounded to 8 bits; (N, 1, H, W) float in [0, 1]."""
    network.eval()
    with torch.no_grad():
        found = [torch.sigmoid(network(image[None])[:, :1]) for image in public.images]
    return (torch.cat(found) * 255).round() / 255


def overlap(one: nn.Module, other: nn.Module, group: Images) -> float:
    """Mean Dice of two networks' masks; 1 where both are empty."""
    with torch.no_grad():
        masks = [[(network.eval()(image[None])[:, :1] > 0) for image in group.images] for network in (one, other)]
    dices = []
    for a, b in zip(*masks, strict=True):
        total = int(a.sum() + b.sum())
        dices.append(2 * int((a & b).sum()) / total if total else 1.0)
    return float(np.mean(dices))
