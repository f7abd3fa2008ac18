"""Membership inference by loss: Yeom et al., CSF 2018 (arXiv 1709.01604)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from samfed_monai.attacks.audit import Options
from samfed_monai.attacks.finding import Finding
from samfed_monai.attacks.target import PUBLIC, Images, Target
from samfed_monai.core.errors import refused
from samfed_monai.core.run_log import progress_bar
from samfed_monai.core.seeds import derive_seed

FALSE_ALARMS = 0.01
"""Largest false-positive rate at which the true-positive rate is measured."""

_DRAWS = 1000  # bootstrap samples


def attack_membership(target: Target, options: Options) -> Finding:
    """Compares the loss on training images with that on test images, for each site and the public set.

    Raises:
        Refused: no site has test images.
    """
    rows, groups = [], [each for each in target.groups if len(each)]
    others = [each for each in groups if not each.member]
    if not others:
        raise refused("membership", "no test images", "images of the list that the model was not trained on")
    shown = progress_bar(groups, desc="losses", unit="group")
    losses = {id(each): image_losses(target.network, each) for each in shown}
    for members in (each for each in groups if each.member):
        of_site = [each for each in others if each.name == members.name]
        non_members = others if members.name == PUBLIC else of_site or others
        masks = members.labels is not None and all(each.labels is not None for each in non_members)
        column = 0 if masks else 1
        unseen = np.concatenate([losses[id(each)][:, column] for each in non_members])
        scores = separation(-losses[id(members)][:, column], -unseen, seed=options.seed)
        auc_without_model = blind_auc(members, non_members, seed=options.seed)
        description = {"images": members.name, "signal": "loss" if masks else "confidence"}
        compared_with = "test images of " + ("all sites" if non_members is others else members.name)
        rows.append({**description, "compared_with": compared_with, **scores, "auc_without_model": auc_without_model})
    return Finding(
        "membership",
        "Membership inference by loss",
        "Was an image in the training set? The lower its loss, the more likely (Yeom et al. 2018).",
        "The released model and an image, with its mask where `signal` is the loss; without masks the signal is the "
        "model's confidence.",
        rows,
        [*(sentence(row["images"], row) for row in rows), *_GENERAL],
    )


_GENERAL = (
    "An AUC of 0.5 is chance. `tpr` is the true-positive rate at a false-positive rate of at most 1 %; with fewer than "
    "100 non-members that means no false positive. `interval` is the 95 % bootstrap interval of the AUC over images.",
    "`auc without model` separates the same two groups by colour, contrast and the mask's area alone: where it is "
    "high, the groups differ in their images, and the AUC says little about memorisation.",
    "Effective: fewer passes over each image, and differential privacy, which bounds every such attack. The release "
    "filter does not help. The sites' agreement decides who receives the released model.",
)


def sentence(name: str, row: Mapping[str, Any]) -> str:
    """Describes a row of :func:`separation`."""
    low, high = row["interval"]
    against = f" against {row['compared_with']}" if "compared_with" in row else ""
    score = f"(AUC {row['auc']:.2f}, {low:.2f} to {high:.2f})"
    if low <= 0.5:
        return f"{name}: membership is not detected{against} {score}."
    shift = " The two groups also differ without the model." if row.get("auc_without_model", 0) > 0.6 else ""
    rate = f"{row['tpr']:.0%} at 1 % false positives"
    return (
        f"{name}: membership of an image is detected better than by chance {score}; true-positive rate {rate}.{shift}"
    )


def image_losses(network: nn.Module, group: Images) -> np.ndarray:
    """Returns the cross entropy of each image, (N, 2): with its mask (NaN without), and with the model's own output.

    Args:
        network: network, which is put into evaluation mode.
        group: images, any number.
    """
    network.eval()
    losses = []
    for index in range(len(group)):
        with torch.no_grad():
            logits = network(group.images[index : index + 1])[:, :1]
        own = functional.binary_cross_entropy_with_logits(logits, torch.sigmoid(logits))
        true = torch.tensor(float("nan"))
        if group.labels is not None:
            true = functional.binary_cross_entropy_with_logits(logits, group.labels[index : index + 1])
        losses.append([float(true), float(own)])
    return np.asarray(losses)


def auc(members: np.ndarray, non_members: np.ndarray) -> Any:
    """Returns the probability that a member's score is above a non-member's; ties count half (Mann and Whitney 1947).

    Args:
        members, non_members: (..., N) and (..., M) scores of members and non-members, higher for members.

    Returns:
        (...,) float.
    """
    from scipy.stats import rankdata

    count = members.shape[-1]
    ranks = rankdata(np.concatenate([members, non_members], axis=-1), axis=-1)[..., :count]
    return (ranks.mean(axis=-1) - (count + 1) / 2) / non_members.shape[-1]


def tpr_at(members: np.ndarray, non_members: np.ndarray, false_alarms: float = FALSE_ALARMS) -> float:
    """Returns the true-positive rate at a false-positive rate of at most ``false_alarms``."""
    return float((members > np.sort(non_members)[::-1][int(false_alarms * len(non_members))]).mean())


def separation(members: np.ndarray, others: np.ndarray, *, seed: int = 0) -> dict[str, Any]:
    """Returns ``members``, ``non_members`` (counts), ``auc`` with its 95 % bootstrap ``interval``, and ``tpr``."""
    random = np.random.default_rng(derive_seed(seed, "bootstrap"))
    samples = [(random.choice(members, len(members)), random.choice(others, len(others))) for _ in range(_DRAWS)]
    low, high = np.quantile(auc(*map(np.stack, zip(*samples, strict=True))), (0.025, 0.975))
    scores = {"auc": round(float(auc(members, others)), 3), "interval": [round(low, 3), round(high, 3)]}
    counts = {"members": len(members), "non_members": len(others)}
    return {**counts, **scores, "tpr": round(tpr_at(members, others), 3)}


def blind_auc(members: Images, others: list[Images], *, seed: int = 0, folds: int = 5) -> float:
    """Returns the AUC of separating the two groups by simple properties of the pictures, without a model.

    A cross-validated linear discriminant (Fisher) of mean and deviation of each colour, roughness and the mask's area.
    Das et al., 2024 (arXiv 2406.16201), show that such blind attacks beat published ones if groups differ.
    """
    masks = members.labels is not None and all(each.labels is not None for each in others)
    one = _properties(members, masks)
    two = np.concatenate([_properties(each, masks) for each in others])
    table, member = np.concatenate([one, two]), np.r_[np.ones(len(one), bool), np.zeros(len(two), bool)]
    order = np.random.default_rng(derive_seed(seed, "folds")).permutation(len(table))
    scores = np.zeros(len(table))
    for fold in range(folds):
        test = order[fold::folds]
        train = np.setdiff1d(order, test)
        if member[train].all() or not member[train].any():
            continue
        scores[test] = table[test] @ _discriminant(table[train], member[train])
    return round(float(auc(scores[member], scores[~member])), 3)


def _properties(group: Images, masks: bool) -> np.ndarray:
    images = group.images
    rough = (images[..., 1:] - images[..., :-1]).abs().flatten(1).mean(dim=1, keepdim=True)
    parts = [images.flatten(2).mean(dim=2), images.flatten(2).std(dim=2), rough]
    if masks and group.labels is not None:
        parts.append(group.labels.flatten(1).mean(dim=1, keepdim=True))
    return torch.cat(parts, dim=1).numpy().astype(np.float64)


def _discriminant(table: np.ndarray, member: np.ndarray) -> np.ndarray:
    spread = np.cov(table, rowvar=False)
    spread += 0.1 * np.trace(spread) / len(spread) * np.eye(len(spread))
    return np.linalg.solve(spread, table[member].mean(axis=0) - table[~member].mean(axis=0))
