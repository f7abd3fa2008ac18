"""What predictions and prototypes reveal where they leave a site instead of weights."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from samfed_monai.attacks.finding import Finding, Options, Shown, against_blank, psnr
from samfed_monai.attacks.inversion import RATE, total_variation
from samfed_monai.attacks.lira import train
from samfed_monai.attacks.membership import image_losses, separation
from samfed_monai.attacks.target import PUBLIC, Images, Target
from samfed_monai.core.errors import Problem, Refused
from samfed_monai.core.progress import progress_bar
from samfed_monai.core.seeds import derive_seed
from samfed_monai.core.words import counted
from samfed_monai.losses import ClassSums, class_sums
from samfed_monai.networks.input_size import head_of

if TYPE_CHECKING:
    from torch import Tensor, nn

TV = 1e-3
"""Weight of mean total variation beside the relative distance of two prototypes."""


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
        ("site", "agreement_dice", "auc_weights", "interval_weights", "auc_masks", "interval_masks"),
        rows,
        [
            *(_told_by_masks(row) for row in rows),
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


def _told_by_masks(row: dict[str, Any]) -> str:
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


def attack_prototypes(target: Target, options: Options) -> Finding:
    """Changes a picture and its mask until their mean features are the prototypes that a site sent.

    The attacker is given more than a server has: the very network that made the prototypes, which stays at its site.

    Raises:
        Refused: a network whose features are not known (:func:`samfed_monai.networks.input_size.head_of`).
    """
    truth = target.private
    rows, shown = [], []
    for count in dict.fromkeys((1, len(truth))):
        images, masks = truth.images[:count], target.masks_of(truth, count)
        sent = prototypes(target.network, images, masks)
        found = from_prototypes(target.network, sent, images[:1].shape, options, start=target.blank)
        nearest = images[int(psnr(found.expand_as(images), images).argmax())][None]
        scores = against_blank(found, nearest, target.blank)
        rows.append({"images": count, "numbers": sent.sums.numel() + sent.counts.numel(), **scores})
        caption = (
            f"Prototypes of {counted(count, 'image')}: the most similar of them, its reconstruction, the blank image."
        )
        strip = {"truth": nearest, "reconstruction": found, "blank": target.blank[None]}
        shown.append(Shown(f"prototypes-{count}", caption, strip))
    one = rows[0]
    rebuilt = bool(one["reconstructed"])
    pixels = truth.images[0].numel()
    return Finding(
        "prototypes",
        "Prototypes",
        "Optimises an image and its mask until their mean features per class match those that were sent "
        f"({options.steps} steps).",
        f"{one['numbers']} numbers for all images of a round together (an image has {pixels}): each class's mean "
        "feature and number of pixels. Here also the network that computed them, which FedProto keeps at its site.",
        ("images", "numbers", "psnr", "blank_psnr", "ssim", "blank_ssim", "reconstructed", "of"),
        rows,
        [
            f"Of one image's prototypes {'the image was' if rebuilt else 'no image was'} reconstructed "
            f"({one['psnr']:.1f} dB; the "
            f"blank image has {one['blank_psnr']:.1f}); those of all images are a mean, in which no single one "
            "can be seen "
            f"({rows[-1]['psnr']:.1f} dB to the most similar; blank {rows[-1]['blank_psnr']:.1f}).",
            "Prototypes reveal the mean colour and texture of lesion and background at a site, and lesion size.",
            "Effective: `least_images`, which refuses prototypes of few images, and keeping the network at its site.",
        ],
        shown,
    )


def features_of(network: nn.Module, images: Tensor) -> Tensor:
    """The input of the network's head, (B, D, h, w), with gradient."""
    kept: list[Tensor] = []
    hook = head_of(network).register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
    try:
        network(images)
    finally:
        hook.remove()
    return kept[0].float()


def prototypes(network: nn.Module, images: Tensor, masks: Tensor) -> ClassSums:
    """What FedProto sends of these images: sums of features and pixels per class."""
    network.eval()
    with torch.no_grad():
        parts = [
            class_sums(features_of(network, image[None]), mask[None]) for image, mask in zip(images, masks, strict=True)
        ]
    sums, counts = (torch.stack([getattr(each, name) for each in parts]).sum(dim=0) for name in ("sums", "counts"))
    return ClassSums(sums, counts)


def from_prototypes(
    network: nn.Module, sent: ClassSums, shape: Any, options: Options, *, start: Tensor | None = None
) -> Tensor:
    """A picture whose features have the means that were sent, and the share of each class; (1, 3, H, W) in [0, 1]."""
    own = copy.deepcopy(network).eval()
    random = torch.Generator().manual_seed(derive_seed(options.seed, "prototypes"))
    middle = torch.full((1, 3, 1, 1), 0.5) if start is None else start[None]
    picture = (middle + 0.1 * torch.randn(tuple(shape), generator=random)).clamp(0, 1).requires_grad_()
    size = features_of(own, picture).shape[-2:]
    mask = (0.1 * torch.randn(1, 1, *size, generator=random)).requires_grad_()
    wanted, share = sent.means().detach(), sent.counts / sent.counts.sum()
    optimizer = torch.optim.Adam([picture, mask], lr=RATE / 2)
    for _ in progress_bar(range(options.steps), show=options.bar, desc="prototypes", unit="step"):
        optimizer.zero_grad()
        features, inside = features_of(own, picture), torch.sigmoid(mask)
        weights = torch.cat([1 - inside, inside], dim=1)
        sums, counts = torch.einsum("bkhw,bdhw->kd", weights, features), weights.sum(dim=(0, 2, 3))
        distance = (sums / counts[:, None] - wanted).pow(2).mean() / wanted.pow(2).mean().clamp(min=1e-12)
        value = distance + (counts / counts.sum() - share).pow(2).mean() + TV * total_variation(picture)
        value.backward()
        optimizer.step()
        with torch.no_grad():
            picture.clamp_(0, 1)
    return picture.detach()
