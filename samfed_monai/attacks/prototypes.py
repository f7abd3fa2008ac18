"""What prototypes, mean features of a class, reveal where they leave a site instead of weights."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch

from samfed_monai.attacks.finding import Finding, Options, Shown, against_blank, psnr
from samfed_monai.attacks.inversion import RATE, total_variation
from samfed_monai.attacks.target import Target
from samfed_monai.core.progress import progress_bar
from samfed_monai.core.seeds import derive_seed
from samfed_monai.core.words import counted
from samfed_monai.losses import ClassSums, class_sums
from samfed_monai.networks.input_size import head_of

if TYPE_CHECKING:
    from torch import Tensor, nn

TV = 1e-3
"""Weight of mean total variation beside the relative distance of two prototypes."""


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
