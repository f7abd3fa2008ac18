"""A malicious server plants a layer that copies images into the update: Fowl et al., ICLR 2022 (arXiv 2110.13057)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from samfed_monai.attacks.audit import Options
from samfed_monai.attacks.finding import Finding, Shown, against_blank, in_order_of_truth
from samfed_monai.attacks.target import Target
from samfed_monai.config.strict import strict_problems
from samfed_monai.core.seeds import derive_seed
from samfed_monai.privacy.network_check import copying_layers
from samfed_monai.privacy.noise import noisy_update

WEIGHT, BIAS = "linear.weight", "linear.bias"
SURE = -10.0
"""Bias of every logit: confident background, so that only pixels of the mask have a gradient."""
RATE = 100.0
"""Learning rate in the plan: large enough that the bias step is not lost in rounding next to :data:`SURE`."""
_MOST_ROWS = 512  # rows compared with each other
_LARGEST = 48  # pixels a side; the layer has 3 times the fourth power of that many weights


def planted_definition(size: int) -> dict[str, Any]:
    """Returns a ``network_def`` of an allowed MONAI class with a linear layer from each pixel to each logit."""
    return {
        "_target_": "monai.networks.nets.Generator",
        "latent_shape": [3, size, size],
        "start_shape": [1, size, size],
        "channels": [1],
        "strides": [1],
        "kernel_size": 1,
        "num_res_units": 0,
    }


def planted_network(size: int) -> nn.Module:
    """Returns the network of :func:`planted_definition` with the malicious server's weights."""
    from monai.networks.nets import Generator

    network = Generator(**{key: value for key, value in planted_definition(size).items() if key != "_target_"})
    network.load_state_dict(planted_weights(network.state_dict()))
    return network


def planted_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns weights for which the gradient at logit i is a sum of only the images whose mask contains pixel i."""
    planted = {
        name: torch.ones_like(tensor) if tensor.ndim > 2 else torch.zeros_like(tensor) for name, tensor in state.items()
    }
    planted[BIAS] = torch.full_like(state[BIAS], SURE)
    return planted


def images_of(before: Mapping[str, Tensor], after: Mapping[str, Tensor], shape: tuple[int, ...], count: int) -> Tensor:
    """Extracts images from the difference of a planted layer after a round.

    Each row is a weighted mean of the images whose mask contains that pixel; a pixel of only one mask gives its image
    exactly, and all such rows of an image are equal. Rows are grouped by similarity; the largest groups are the images.

    Args:
        before, after: state dicts with :data:`WEIGHT` and :data:`BIAS`.
        shape: (C, H, W) of an image.
        count: number of images to return.

    Returns:
        (count, C, H, W) float in [0, 1]; filled up with grey images if fewer were found.
    """
    weight, bias = (after[name].double() - before[name].double() for name in (WEIGHT, BIAS))
    is_active = bias.abs() > 1e-3 * bias.abs().max().clamp(min=1e-30)
    rows = (weight[is_active] / bias[is_active][:, None]).float()
    rows = rows[((rows > -0.05) & (rows < 1.05)).float().mean(dim=1) > 0.98]
    rows = rows[:: max(1, len(rows) // _MOST_ROWS)]
    are_similar = torch.cdist(rows, rows, p=1) / rows.shape[1] < 0.01
    images: list[Tensor] = []
    while len(images) < count and len(rows):
        largest = are_similar[int(are_similar.sum(dim=1).argmax())]
        images.append(rows[largest].mean(dim=0).reshape(shape))
        rows, are_similar = rows[~largest], are_similar[~largest][:, ~largest]
    images += [torch.full(shape, 0.5)] * (count - len(images))
    return torch.stack(images).clamp(0, 1)


def attack_planted(target: Target, options: Options) -> Finding:
    """Trains a planted network for one step on a batch of a site's images, without a defence and with each of them."""
    members = target.private
    count = min(options.batch, len(members))
    size = min(members.images.shape[-1], _LARGEST)
    truth = functional.interpolate(members.images[:count], (size, size), mode="area")
    masks = (functional.interpolate(target.masks_of(members, count), (size, size), mode="area") > 0.5).float()
    blank = functional.interpolate(target.blank[None], (size, size), mode="area")[0]
    network = planted_network(size)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    noise = np.random.default_rng(derive_seed(options.seed, "noise")).standard_normal
    arguments: dict[str, Any] = {"clip": 1.0, "noise_multiplier": 1.0, "noise": noise, "learned": list(before)}
    plain = one_round(network, target.loss, truth, masks, adam=False)
    updates = {
        "none": plain,
        "AdamW instead of SGD at the sites": one_round(network, target.loss, truth, masks, adam=True),
        "differential privacy, clip 1, noise multiplier 1": noisy_update(plain, before, **arguments),
    }
    rows: list[dict[str, Any]] = []
    shown: list[Shown] = []
    for defence, after in updates.items():
        reconstruction = in_order_of_truth(images_of(before, after, tuple(truth.shape[1:]), count), truth)
        rows.append({"defence": defence, "stopped": False, **against_blank(reconstruction, truth, blank)})
        rows[-1]["stopped"] = not rows[-1]["reconstructed"]
        strip = {"truth": truth, "reconstruction": reconstruction, "blank": blank[None].expand_as(truth)}
        caption = f"Defence: {defence}. Truth, reconstruction from the update, blank image."
        shown.append(Shown(f"planted-{len(rows)}", caption, strip))
    sent = {"network_def": planted_definition(size)}
    checks = {
        "strict check of what is sent (no class is forbidden)": bool(strict_problems(sent, "plan")),
        "the site's network inspection, before training": bool(copying_layers(network, (3, size, size))),
    }
    no_scores: dict[str, Any] = dict.fromkeys(("psnr", "blank_psnr", "ssim", "blank_ssim", "reconstructed"), None)
    for defence, stopped in checks.items():
        row = {**rows[0], "defence": defence, "stopped": stopped}
        rows.append(row if not stopped else {**row, **no_scores, "reconstructed": 0})
    best = rows[0]
    open_defences = [row["defence"] for row in rows if not row["stopped"] and row["defence"] != "none"]
    return Finding(
        "planted",
        "A layer planted by the server",
        "The plan names a network whose first layer connects every pixel to every logit, and the server sends weights "
        "for which a logit's gradient is the image whose mask contains that pixel (Fowl et al. 2022; on medical images "
        "MedLeak, Shi et al. 2024).",
        f"One update of a batch of {count}, {size} px; the network consists of MONAI's own classes.",
        rows,
        [
            f"Without a defence {best['reconstructed']} of {best['of']} images were reconstructed from one update, "
            f"the best at {best['psnr']:.1f} dB (blank image {best['blank_psnr']:.1f}).",
            "The site's network inspection refuses the network before it sees any image. "
            + (f"Not stopped by: {'; '.join(open_defences)}." if open_defences else ""),
            "Not covered: a thumbnail of 16 x 16 pixels, several small layers in combination, and weights planted in a "
            "network of the catalogue, which reveal no whole image but make reconstruction from an update easier.",
        ],
        shown,
    )


def one_round(network: nn.Module, loss: Any, images: Tensor, masks: Tensor, *, adam: bool) -> dict[str, Tensor]:
    """Returns the state dict after one step on a copy of the network."""
    trained = copy.deepcopy(network).train()
    make_optimizer: Any = torch.optim.AdamW if adam else torch.optim.SGD
    optimizer = make_optimizer(trained.parameters(), lr=1e-3 if adam else RATE)
    loss(trained(images), masks).backward()
    optimizer.step()
    return dict(trained.state_dict())
