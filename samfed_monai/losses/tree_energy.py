"""The tree energy of pixels without a label, exact (Liang et al., CVPR 2022; filter: Song et al., NeurIPS 2019)."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.sparse import csgraph, csr_array
from torch import Tensor
from torch.nn import functional


class Trees(NamedTuple):
    """Spanning trees of a batch's pixels, nodes in the order of their depth.

    Args:
        node: (N,) long, which pixel of the batch a node is.
        parent: (N,) long, place of its parent; a root's is its own.
        levels: where each depth begins, and the end.
        weight: (N,) float64 in [0, 1], of the edge to the parent.
    """

    node: Tensor
    parent: Tensor
    levels: list[int]
    weight: Tensor


def spanning_trees(guide: Tensor, sigma: float) -> Trees:
    """Minimum spanning tree of each picture's grid of pixels, four neighbours each (Liang et al., CVPR 2022).

    An edge costs ``|g_i - g_j|^2``, and its weight is ``exp(-|g_i - g_j|^2 / sigma)``.

    Args:
        guide: (B, D, H, W) float, what pixels are compared by.
        sigma: > 0.
    """
    batch, _, height, width = guide.shape
    count = height * width
    pixel = np.arange(count).reshape(height, width)
    one = np.concatenate([pixel[:-1].ravel(), pixel[:, :-1].ravel()])
    other = np.concatenate([pixel[1:].ravel(), pixel[:, 1:].ravel()])
    flat = guide.detach().cpu().double().flatten(2).numpy()
    nodes, parents, depths, weights = [], [], [], []
    for number, values in enumerate(flat):
        cost = np.square(values[:, one] - values[:, other]).sum(0) + 1  # SciPy takes a cost of 0 for no edge
        tree = csgraph.minimum_spanning_tree(csr_array((cost, (one, other)), shape=(count, count)))
        order, before = csgraph.breadth_first_order(tree, 0, directed=False)
        above = np.where(before[order] < 0, order, before[order])
        place = np.empty(count, dtype=np.int64)
        place[order] = np.arange(count)
        bounds = [0, 1]  # breadth first: parents ascend, so that a depth ends where parents leave the one before
        while bounds[-1] < count:
            bounds.append(int(np.searchsorted(place[above], bounds[-1])))
        depths.append(np.repeat(np.arange(len(bounds) - 1), np.diff(bounds)))
        nodes.append(order + number * count)
        parents.append(place[above] + number * count)
        weights.append(np.exp(-np.square(values[:, order] - values[:, above]).sum(0) / sigma))
    depth = np.concatenate(depths)
    sorted_ = np.argsort(depth, kind="stable")
    now = np.empty(batch * count, dtype=np.int64)
    now[sorted_] = np.arange(batch * count)
    levels = np.searchsorted(depth[sorted_], np.arange(depth.max() + 2)).tolist()
    node, parent, weight = (np.concatenate(each)[sorted_] for each in (nodes, parents, weights))
    return Trees(torch.from_numpy(node).long(), torch.from_numpy(now[parent]), levels, torch.from_numpy(weight))


def along_trees(values: Tensor, trees: Trees) -> Tensor:
    """``sum_j S_ij x_j`` with ``S_ij`` the product of weights on the way from i to j (Song et al., NeurIPS 2019).

    Exact, in two passes: sums of subtrees go up, what lies elsewhere comes down. ``S`` is symmetric.

    Args:
        values: (N, C) float64, of all pixels of the batch.
        trees: see :func:`spanning_trees`.
    """
    below, weight = values[trees.node], trees.weight[:, None]
    spans = [slice(start, end) for start, end in zip(trees.levels[1:-1], trees.levels[2:], strict=True)]
    for span in reversed(spans):
        below.index_add_(0, trees.parent[span], weight[span] * below[span])
    everywhere = below.clone()
    for span in spans:
        one = weight[span]
        everywhere[span] = one * everywhere[trees.parent[span]] + (1 - one.square()) * below[span]
    return torch.empty_like(values).index_copy_(0, trees.node, everywhere)


class _Filtered(torch.autograd.Function):
    """``S x / S 1``; its gradient is ``S (g / S 1)``, as S is symmetric. Weights of the tree get none."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, trees: Trees) -> Tensor:
        ctx.trees, ctx.mass = trees, along_trees(torch.ones_like(values[:, :1]), trees)
        return along_trees(values, trees) / ctx.mass

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return along_trees(gradients[0] / ctx.mass, ctx.trees), None


def tree_filtered(values: Tensor, guide: Tensor, sigma: float) -> Tensor:
    """Each pixel's mean over its whole picture, near ones along the tree of ``guide`` weighing more.

    Args:
        values: (B, C, H, W) float; it gets a gradient.
        guide: (B, D, H, W) float; it gets none.
        sigma: > 0; see :func:`spanning_trees`.

    Returns:
        (B, C, H, W) of the type and device of ``values``; computed on the processor in float64.
    """
    batch, classes, height, width = values.shape
    flat = values.cpu().double().movedim(1, -1).reshape(-1, classes)
    filtered: Tensor = _Filtered.apply(flat, spanning_trees(guide, sigma))
    return filtered.view(batch, height, width, classes).movedim(-1, 1).to(values)


def tree_energy(chances: Tensor, image: Tensor, unknown: Tensor, features: Tensor | None, *, sigma: float) -> Tensor:
    """``1/|U| sum_{i in U} sum_c |p_i^c - q_i^c|`` over the unlabelled pixels U (Liang et al., CVPR 2022, equation 3).

    ``q`` is ``p`` filtered along the tree of the image's colours, then along that of the network's features. It is not
    detached, as in FedICRA's code.

    Args:
        chances: (B, C, H, W) float in [0, 1]; C = 1 is the foreground's, and counts for both classes.
        image: (B, 3, H, W) float in [0, 1].
        unknown: (B, 1, H, W) bool, the pixels without a label.
        features: (B, D, h, w) float, resized to the image; ``None`` filters by colours alone.
        sigma: of colours (FedICRA: 0.02); that of features is 1.

    Returns:
        A scalar >= 0; 0 where all pixels have a label.
    """
    filtered = tree_filtered(chances, image, sigma)
    if features is not None:
        features = functional.interpolate(features.detach().float(), size=chances.shape[-2:], mode="bilinear")
        filtered = tree_filtered(filtered, features, 1.0)
    apart = torch.where(unknown, (chances - filtered).abs(), 0.0).sum()
    return (2 if chances.shape[1] == 1 else 1) * apart / unknown.sum().clamp(min=1)
