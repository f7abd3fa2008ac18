"""LiRA, membership inference by likelihood ratio with shadow models: Carlini et al., S&P 2022 (arXiv 2112.03570)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from samfed_monai.attacks.audit import Options
from samfed_monai.attacks.finding import Finding
from samfed_monai.attacks.membership import image_losses, sentence, separation
from samfed_monai.attacks.target import Images, Target
from samfed_monai.core.errors import refused
from samfed_monai.core.io import canonical_hash, read_json, write_json
from samfed_monai.core.run_log import progress_bar
from samfed_monai.core.seeds import derive_seed
from samfed_monai.core.training_state import own_random_state

LEAST_SHADOWS = 16
_BATCH = 8  # images in a step of a shadow model


def attack_lira(target: Target, options: Options, folder: Path) -> Finding:
    """Trains shadow models on random halves of all labelled images and compares the released model with them.

    Shadow models are the run's network, trained centrally with labels instead of in a federation, so that the attack on
    the released model is weaker than possible. The second row shows the attack at full knowledge: each shadow model
    attacked with the others.

    Args:
        target: the target; its groups with masks are used.
        options: number of shadow models and of their steps.
        folder: folder for each shadow model's losses, so that a second call can resume.

    Raises:
        Refused: fewer than 16 shadow models, an odd number, or too few images with masks.
    """
    if options.shadows < LEAST_SHADOWS or options.shadows % 2:
        expected = f"an even number from {LEAST_SHADOWS}, as each image is in half of the models"
        raise refused("--shadows", found=str(options.shadows), expected=expected)
    groups = [each for each in target.groups if len(each) and each.labels is not None]
    member = np.concatenate([np.full(len(each), each.member) for each in groups]) if groups else np.zeros(0, bool)
    if member.sum() < 8 or (~member).sum() < 8:
        found = f"{member.sum()} training and {(~member).sum()} test images with masks"
        raise refused("lira", found=found, expected="at least 8 of each")
    labels = torch.cat([each.labels for each in groups if each.labels is not None])
    pool = Images("all", True, torch.cat([each.images for each in groups]), labels)
    signals, trained_on = shadow_signals(target, pool, options, folder)
    released = likelihood_ratio(signal(image_losses(target.network, pool)[:, 0]), signals, trained_on)
    of_shadows = [
        likelihood_ratio(signals[k], np.delete(signals, k, 0), np.delete(trained_on, k, 0)) for k in range(len(signals))
    ]
    attacked = {
        "released model": (released, member),
        "shadow models, each attacked with the others": (np.concatenate(of_shadows), trained_on.ravel()),
    }
    rows = [
        {"model": model, **separation(scores[truth], scores[~truth], seed=options.seed)}
        for model, (scores, truth) in attacked.items()
    ]
    return Finding(
        "lira",
        "Membership inference by shadow models (LiRA)",
        f"Trains {options.shadows} shadow models on random halves of {len(pool)} images ({options.shadow_steps} steps "
        "each), and compares each image's loss with those of models trained with and without it (Carlini et al. 2022; "
        "one variance for all images, as they advise for few shadow models).",
        "The released model, the image and its mask, many similar images, and a day of computing.",
        rows,
        [sentence(row["model"].capitalize(), row) for row in rows]
        + [
            "In the second row, members and non-members are drawn from the same images, and the shadow models are "
            "trained like the attacked model: an upper estimate of how much this network memorises of so few images.",
            "Effective: differential privacy, more images per site, fewer steps.",
        ],
    )


def signal(losses: np.ndarray) -> np.ndarray:
    """Returns the log odds of the true label, ``log(p / (1 - p))`` for ``p = exp(-loss)``, which are nearly normal."""
    bounded = np.clip(losses, 1e-6, None)
    return -bounded - np.log(-np.expm1(-bounded))


def likelihood_ratio(attacked: np.ndarray, signals: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Returns the log likelihood of ``attacked`` under models trained on the image minus that under the other models.

    Args:
        attacked: (N,) signals of the attacked model.
        signals: (K, N) signals of the shadow models.
        inside: (K, N) bool, whether a shadow model was trained on the image.

    Returns:
        (N,); higher for members.
    """
    mean, spread = [], []
    for subset in (inside, ~inside):
        center = (signals * subset).sum(axis=0) / np.maximum(subset.sum(axis=0), 1)
        residuals = ((signals - center) * subset)[:, subset.any(axis=0)]
        mean.append(center)
        spread.append(max(float(np.sqrt((residuals**2).sum() / max(subset.sum(), 1))), 1e-6))
    log = [-0.5 * ((attacked - mean[i]) / spread[i]) ** 2 - np.log(spread[i]) for i in range(2)]
    return np.asarray(log[0] - log[1])


def shadow_signals(target: Target, pool: Images, options: Options, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Returns (K, N) signals of the shadow models, and (K, N) bool, the images that each was trained on.

    Each pair of models splits the images in two, so that each image is in half of the models.
    """
    about = {name: str(value) for name, value in target.about.items()}
    images = [float(each.double().sum()) for each in pool.images]
    pool_hash = canonical_hash({"images": images, "steps": options.shadow_steps, "seed": options.seed, "about": about})
    signals, trained_on = [], []
    for index in progress_bar(range(options.shadows), desc="shadow models", unit="model"):
        order = np.random.default_rng(derive_seed(options.seed, "half", index // 2)).permutation(len(pool))
        is_trained_on = np.zeros(len(pool), bool)
        is_trained_on[np.array_split(order, 2)[index % 2]] = True
        path = folder / f"{index:03d}.json"
        stored = read_json(path) if path.is_file() else {}
        if stored.get("of") != pool_hash:
            seed = derive_seed(options.seed, "shadow", index)
            network = train(target, pool, np.flatnonzero(is_trained_on), steps=options.shadow_steps, seed=seed)
            stored = {"of": pool_hash, "losses": [float(value) for value in image_losses(network, pool)[:, 0]]}
            write_json(path, stored)
        signals.append(signal(np.asarray(stored["losses"])))
        trained_on.append(is_trained_on)
    return np.stack(signals), np.stack(trained_on)


def train(target: Target, pool: Images, which: np.ndarray, *, steps: int, seed: int) -> nn.Module:
    """Trains the run's network from random weights on some of the images; the only augmentation is flips.

    Args:
        target: provides the network, its loss and its learning rate.
        pool: images with masks.
        which: (n,) indices of the training images.
        steps: number of steps of AdamW.
        seed: seed of the network and of the batches; the process's random state is restored.
    """
    labels = target.masks_of(pool, len(pool))
    with own_random_state(seed):
        network = target.fresh().train()
        optimizer = torch.optim.AdamW(network.parameters(), lr=target.learning_rate)
        for _ in range(steps):
            batch = torch.as_tensor(which)[torch.randint(len(which), (min(_BATCH, len(which)),))]
            image, label = pool.images[batch], labels[batch]
            if torch.rand(()) < 0.5:
                image, label = image.flip(-1), label.flip(-1)
            optimizer.zero_grad()
            target.loss(network(image), label).backward()
            optimizer.step()
    return network.eval()
