"""What must stay together: images of one group, and images with the same bytes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def clusters(hashes: Sequence[str], groups: Sequence[str | None]) -> list[list[int]]:
    """Indices of images that may not be separated.

    Two images belong together when they share a group or their bytes, directly or through others.

    Args:
        hashes: SHA-256 of every image.
        groups: group of every image, or ``None``.

    Returns:
        Lists of indices that cover every image exactly once, ordered by their smallest hash, so that the result does
        not depend on file names or on the order of the input.
    """
    parent = list(range(len(hashes)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    first: dict[tuple[str, str], int] = {}
    for index, (digest, group) in enumerate(zip(hashes, groups, strict=True)):
        for key in [("bytes", digest)] + ([("group", group)] if group else []):
            parent[root(index)] = root(first.setdefault(key, index))
    members: dict[int, list[int]] = {}
    for index in range(len(hashes)):
        members.setdefault(root(index), []).append(index)
    return sorted(members.values(), key=lambda cluster: min(hashes[index] for index in cluster))


def draw(sizes: Sequence[int], target: int, random: np.random.Generator, *, leave: int = 1) -> list[int]:
    """Draws clusters at random until their sizes add up to ``target`` as nearly as whole clusters allow.

    Args:
        sizes: number of images in each cluster.
        target: number of images wanted; 0 draws nothing.
        random: source of the order in which clusters are tried.
        leave: number of clusters that stay behind in any case.

    Returns:
        Indices of the drawn clusters, ascending; at least one when ``target`` is positive and enough are left.
    """
    drawn: list[int] = []
    total = 0
    order = [int(index) for index in random.permutation(len(sizes))]
    for index in order:
        if len(drawn) < len(sizes) - leave and abs(total + sizes[index] - target) < abs(total - target):
            drawn.append(index)
            total += sizes[index]
    if target > 0 and not drawn and len(sizes) > leave:
        drawn = [min(order, key=lambda index: sizes[index])]
    return sorted(drawn)


def subset(hashes: Sequence[str], limit: int | None) -> list[int]:
    """Indices of ``limit`` images, chosen by their hashes: no order of names matters, and a smaller subset lies inside
    a larger one. ``None`` keeps all. The indices come back ascending.
    """
    chosen = sorted(range(len(hashes)), key=lambda index: (hashes[index], index))
    return sorted(chosen if limit is None else chosen[:limit])
