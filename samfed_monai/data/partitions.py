"""Who gets which images: pure functions from hashes, groups and features to indices.

Every function covers each index exactly once, keeps clusters (one group, or the same bytes) in one place, and depends
only on its arguments and the seed, not on file names or the order of the input.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from samfed_monai.data.grouping import clusters, draw
from samfed_monai.errors import Problem, Refused
from samfed_monai.seeds import derive_seed

Clusters = list[list[int]]
BINS = 5
ATTEMPTS = 200


class Partition(str, Enum):
    """How one collection is divided among sites."""

    IID = "iid"
    FOLDER = "folder"
    DIRICHLET_SIZE = "dirichlet-size"
    DIRICHLET_APPEARANCE = "dirichlet-appearance"


def iid(together: Clusters, sites: int, *, seed: int = 0) -> list[list[int]]:
    """Divides clusters at random into parts of about equal size.

    Args:
        together: clusters of indices (:func:`~.grouping.clusters`).
        sites: number of parts.
        seed: of the order.

    Returns:
        Indices of each part, ascending.
    """
    _enough(together, sites)
    order = _random(seed, "iid").permutation(len(together))
    largest_first = sorted((int(index) for index in order), key=lambda index: -len(together[index]))
    parts: list[list[int]] = [[] for _ in range(sites)]
    for index in largest_first:
        min(parts, key=len).extend(together[index])
    return [sorted(part) for part in parts]


def dirichlet(
    together: Clusters, classes: Sequence[int], sites: int, *, alpha: float, seed: int = 0
) -> list[list[int]]:
    """Divides clusters so that each site has its own mixture of classes (Hsu et al. 2019, arXiv 1909.06335).

    For every class the sites' shares are drawn from Dirichlet(alpha): 100 is nearly IID, 0.1 nearly one class a site.
    Drawn again until every site has something.

    Args:
        together: clusters of indices.
        classes: class of every image (:func:`size_classes`, :func:`appearance_classes`); a cluster counts as the most
            frequent one among its images.
        sites: number of parts.
        alpha: concentration, positive.
        seed: of the draws.
    """
    _enough(together, sites)
    if not alpha > 0:
        raise Refused([Problem("alpha", found=repr(alpha), expected="a positive number", mend="for instance 0.5")])
    random = _random(seed, "dirichlet")
    by_class: dict[int, list[int]] = {}
    for index, cluster in enumerate(together):
        by_class.setdefault(int(np.bincount([classes[i] for i in cluster]).argmax()), []).append(index)
    for _ in range(ATTEMPTS):
        parts: list[list[int]] = [[] for _ in range(sites)]
        for _, members in sorted(by_class.items()):
            shares = random.dirichlet(np.full(sites, alpha))
            cuts = np.round(np.cumsum(shares)[:-1] * len(members)).astype(int)
            for part, chosen in zip(parts, np.split(random.permutation(members), cuts), strict=True):
                part.extend(i for index in chosen for i in together[int(index)])
        if all(parts):
            return [sorted(part) for part in parts]
    found = f"no division with images for all of {sites} sites in {ATTEMPTS} draws"
    raise Refused([Problem("alpha", found=found, expected="one", mend="raise alpha, or ask for fewer sites")])


def size_classes(foreground: Sequence[float], bins: int = BINS) -> list[int]:
    """Class of every image by the size of its lesion: equally full bins of the foreground's share."""
    values = np.asarray(foreground, dtype=float)
    return np.searchsorted(np.quantile(values, np.linspace(0, 1, bins + 1)[1:-1]), values, side="right").tolist()


def appearance_classes(mean_rgb: Sequence[tuple[float, float, float]], bins: int = BINS) -> list[int]:
    """Class of every image by its mean colour: k-means from starts spread along the principal axis (no randomness)."""
    colours = np.asarray(mean_rgb, dtype=float)
    centred = colours - colours.mean(axis=0)
    axis = np.linalg.svd(centred, full_matrices=False)[2][0]
    axis = axis * np.sign(axis[np.abs(axis).argmax()])
    order = np.argsort(centred @ axis, kind="stable")
    centres: NDArray[np.float64] = np.stack(
        [part.mean(axis=0) for part in np.array_split(colours[order], bins) if len(part)]
    )
    classes = np.zeros(len(colours), dtype=int)
    for _ in range(50):
        classes = ((colours[:, None] - centres[None]) ** 2).sum(-1).argmin(1)
        centres = np.stack(
            [colours[classes == k].mean(axis=0) if (classes == k).any() else c for k, c in enumerate(centres)]
        )
    return classes.tolist()


def hold_out(
    hashes: Sequence[str],
    groups: Sequence[str | None],
    labelled: Sequence[bool],
    shares: Sequence[float],
    *,
    seed: int = 0,
) -> list[list[int]]:
    """Draws splits for measuring out of one site's labelled images.

    Only clusters whose images all have labels are drawn from, and something is always left to train on. A share counts
    against all images of the site; where labels do not suffice for all shares, they are divided in proportion.

    Args:
        hashes: SHA-256 of every image.
        groups: group of every image, or ``None``.
        labelled: whether the image has a mask.
        shares: of each split, in [0, 1), together less than 1.
        seed: of the draws.

    Returns:
        Indices of each split in the order of ``shares``, then of all the rest.
    """
    if any(not 0 <= share < 1 for share in shares) or sum(shares) >= 1:
        mend = "for instance 0.1 and 0.1"
        raise Refused([Problem("shares", found=str(list(shares)), expected="in [0, 1), together < 1", mend=mend)])
    everything = clusters(hashes, groups)
    together = [cluster for cluster in everything if all(labelled[index] for index in cluster)]
    leave = int(len(together) == len(everything))
    available = sum(map(len, together))
    scale = min(1.0, available / (sum(shares) * len(hashes))) if sum(shares) and hashes else 1.0
    splits: list[list[int]] = []
    for number, share in enumerate(shares):
        target = round(share * scale * len(hashes))
        random = _random(seed, f"hold-out-{number}")
        drawn = draw([len(cluster) for cluster in together], target, random, leave=leave)
        splits.append(sorted(index for cluster in drawn for index in together[cluster]))
        together = [cluster for index, cluster in enumerate(together) if index not in drawn]
    taken = {index for split in splits for index in split}
    return [*splits, [index for index in range(len(hashes)) if index not in taken]]


def _random(seed: int, purpose: str) -> np.random.Generator:
    return np.random.default_rng(derive_seed(seed, purpose))


def _enough(together: Clusters, sites: int) -> None:
    if not 1 <= sites <= len(together):
        found = f"{sites} sites for {len(together)} independent groups of images"
        raise Refused(
            [Problem("sites", found=found, expected="at least one group for each", mend="ask for fewer sites")]
        )
