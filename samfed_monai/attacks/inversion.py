"""Images from an update: Geiping et al., NeurIPS 2020 (arXiv 2003.14053); batch statistics: Yin et al., CVPR 2021."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from samfed_monai.attacks.audit import Options
from samfed_monai.attacks.finding import GAIN_DB, Finding, Shown, against_blank, in_order_of_truth
from samfed_monai.attacks.target import Target
from samfed_monai.core.run_log import progress_bar
from samfed_monai.core.seeds import derive_seed
from samfed_monai.core.training_state import own_random_state

TV = 1e-5
"""Weight of mean total variation in the loss; the best of 1e-2 to 1e-6 on rendered images of 16 px."""
STATISTICS = 1e-2
"""Weight of the distance to the batch statistics (Yin et al., arXiv 2104.07586: 0.1 of a sum of norms)."""
RATE = 0.1
"""Learning rate of the images' optimizer, with cosine decay to 0 (Geiping et al.: 0.1)."""


@dataclass(frozen=True)
class Update:
    """The information that a server gets from one update.

    Args:
        direction: per parameter, the gradient or the difference of the weights.
        statistics: per batch norm layer in training mode, mean and variance of its batch: the running statistics before
            and after a step reveal them exactly.
    """

    direction: Sequence[Tensor]
    statistics: Sequence[tuple[Tensor, Tensor]] = field(default_factory=tuple)


def attack_inversion(target: Target, options: Options) -> Finding:
    """Reconstructs training images of the first site from one gradient and from one update of several steps."""
    truth = target.private
    count = min(options.batch, len(truth))
    masks = target.masks_of(truth, count)
    rows: list[dict[str, Any]] = []
    shown: list[Shown] = []
    observations = dict.fromkeys((("gradient", 1, 0), ("gradient", count, 0), ("update", count, 4)))
    for start, make in (("released model", target.copy), ("random weights", lambda: target.fresh().train())):
        with own_random_state(derive_seed(options.seed, "inversion", start)):
            network = make()
        has_running_statistics = bool(_batch_norms(network))
        for (what, images, steps), with_statistics in product(observations, (False, True)):
            if with_statistics and (steps or not has_running_statistics):
                continue
            image, mask = truth.images[:images], masks[:images]
            update = observed(network, target.loss, image, mask, steps=steps, rate=target.learning_rate)
            update = update if with_statistics else Update(update.direction)
            reconstruction = invert(network, target.loss, update, image.shape, mask, target.blank, options)
            reconstruction = in_order_of_truth(reconstruction, image)
            attempt = f"{what} of {images}" + (f", {steps} steps of AdamW" if steps else "")
            statistics = "with" if with_statistics else "without" if has_running_statistics else "no running statistics"
            scores = against_blank(reconstruction, image, target.blank)
            rows.append({"network": start, "observed": attempt, "statistics": statistics, **scores})
            caption = f"{start}, {attempt}, batch norm statistics: {statistics}. Truth, reconstruction, blank image."
            strip = {"truth": image, "reconstruction": reconstruction, "blank": target.blank[None].expand_as(image)}
            shown.append(Shown(f"inversion-{len(rows)}", caption, strip))
    hits = [row for row in rows if row["reconstructed"]]
    verdict = [
        f"Of {len(rows)} attempts {len(hits)} came closer to an image than the blank image ({GAIN_DB:g} dB, or SSIM)"
        + (f", the best at {max(row['psnr'] for row in hits):.1f} dB." if hits else ".")
    ]
    verdict += [
        "The setting favours the attacker: masks are known, and a real round's augmentation and unlabelled terms are "
        "left out. The result holds for this optimiser and number of steps; it does not prove safety.",
        "Effective: more images and more steps per round (a site's `least_images` sets a minimum), group instead of "
        "batch normalisation, predictions instead of weights, differential privacy. Not effective: the release filter.",
    ]
    return Finding(
        "inversion",
        "Image reconstruction from an update",
        "Optimises an image until its gradient matches the site's (cosine distance and total variation, "
        f"{options.steps} steps of Adam; Geiping et al. 2020), and its batch statistics where the network has running "
        "ones (Yin et al. 2021).",
        "The network before and after the round, and the loss; here the masks as well.",
        rows,
        verdict,
        shown,
    )


def observed(
    network: nn.Module, loss: Any, images: Tensor, masks: Tensor, *, steps: int = 0, rate: float = 1e-3
) -> Update:
    """Returns the update of a site: the gradient, or the difference after ``steps`` steps of AdamW.

    Args:
        network: before the step; not changed.
        loss: ``(logits, masks) -> scalar``.
        images, masks: (B, 3, H, W) and (B, 1, H, W).
        steps: number of steps; 0 returns the gradient.
        rate: learning rate of the optimizer.
    """
    trained = copy.deepcopy(network)
    with _batch_statistics(trained) as take_statistics:
        value = loss(trained(images), masks)
        statistics = [(mean.detach(), variance.detach()) for mean, variance in take_statistics()]
    if not steps:
        return Update([each.detach() for each in torch.autograd.grad(value, _parameters(trained))], statistics)
    optimizer = torch.optim.AdamW(_parameters(trained), lr=rate)
    before = [each.detach().clone() for each in _parameters(trained)]
    for _ in range(steps):
        optimizer.zero_grad()
        loss(trained(images), masks).backward()
        optimizer.step()
    return Update([old - new.detach() for old, new in zip(before, _parameters(trained), strict=True)], statistics)


def invert(
    network: nn.Module, loss: Any, update: Update, shape: Sequence[int], masks: Tensor, blank: Tensor, options: Options
) -> Tensor:
    """Reconstructs images whose update is close to the observed one.

    Args:
        network: before the step; not changed.
        loss: ``(logits, masks) -> scalar``.
        update: the observed update.
        shape: (B, 3, H, W) of the images.
        masks: (B, 1, H, W), assumed to be known.
        blank: (3, H, W), the initial picture, to which noise is added.
        options: steps of Adam, and the seed of the noise.

    Returns:
        (B, 3, H, W) float in [0, 1].
    """
    network_copy = copy.deepcopy(network)
    random = torch.Generator().manual_seed(derive_seed(options.seed, "inversion"))
    guess = (blank[None] + 0.1 * torch.randn(tuple(shape), generator=random)).clamp(0, 1).requires_grad_()
    optimizer = torch.optim.Adam([guess], lr=RATE)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.steps)
    parameters = _parameters(network_copy)
    # math kernel for attention: PyTorch's faster kernels have no second derivative
    with _batch_statistics(network_copy) as take_statistics, sdpa_kernel(SDPBackend.MATH):
        for _ in progress_bar(range(options.steps), desc="reconstruction", unit="step"):
            optimizer.zero_grad()
            gradients = torch.autograd.grad(loss(network_copy(guess), masks), parameters, create_graph=True)
            value = cosine_distance(gradients, update.direction) + TV * total_variation(guess)
            if update.statistics:
                value = value + STATISTICS * statistics_distance(take_statistics(), update.statistics)
            take_statistics()
            (guess.grad,) = torch.autograd.grad(value, [guess])
            optimizer.step()
            scheduler.step()
            with torch.no_grad():
                guess.clamp_(0, 1)
    return guess.detach()


def cosine_distance(one: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
    """Returns ``1 - cos`` of two updates, with all parameters as one vector (Geiping et al., equation 4)."""
    a, b = (torch.cat([each.flatten() for each in parts]) for parts in (one, other))
    return 1 - functional.cosine_similarity(a, b, dim=0)


def total_variation(images: Tensor) -> Tensor:
    """Returns the mean absolute difference of neighbouring pixels (anisotropic)."""
    across, down = images[..., 1:] - images[..., :-1], images[..., 1:, :] - images[..., :-1, :]
    return across.abs().mean() + down.abs().mean()


def statistics_distance(found: Sequence[tuple[Tensor, Tensor]], target: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Returns the mean distance of batch means and variances over layers, relative to the observed variances."""
    parts = []
    for (mean, variance), (true_mean, true_variance) in zip(found, target, strict=True):
        scale = true_variance + 1e-3
        parts.append(((mean - true_mean).pow(2) / scale).mean() + ((variance - true_variance) / scale).pow(2).mean())
    return torch.stack(parts).mean()


def _parameters(network: nn.Module) -> list[nn.Parameter]:
    return [each for each in network.parameters() if each.requires_grad]


def _batch_norms(network: nn.Module) -> list[nn.Module]:
    """Returns the batch norm layers whose running statistics a step updates."""
    kinds = nn.modules.batchnorm._BatchNorm
    return [
        each for each in network.modules() if isinstance(each, kinds) and each.training and each.track_running_stats
    ]


@contextmanager
def _batch_statistics(network: nn.Module) -> Iterator[Any]:
    """Yields a function that returns and clears the batch statistics since its last call, with gradient."""
    collected: list[tuple[Tensor, Tensor]] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        axes = [axis for axis in range(inputs[0].ndim) if axis != 1]
        collected.append((inputs[0].mean(axes), inputs[0].var(axes, unbiased=False)))

    def take() -> list[tuple[Tensor, Tensor]]:
        statistics = list(collected)
        collected.clear()
        return statistics

    with ExitStack() as hooks:
        for norm in _batch_norms(network):
            hooks.enter_context(norm.register_forward_pre_hook(keep))
        yield take
