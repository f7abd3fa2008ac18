"""FedICRA (arXiv 2304.05635): channels selected by site, a decoder mixed at each site in every round, a tree energy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from scipy.sparse import csgraph, csr_array
from torch import Tensor, nn
from torch.nn import functional

from samfed_monai.core.errors import Problems, refused
from samfed_monai.core.validators import COUNT, POSITIVE, in_range, require, whole
from samfed_monai.handlers.guide import Guidance
from samfed_monai.handlers.parts_in_turn import PartsInTurn
from samfed_monai.handlers.term import FeatureTerm
from samfed_monai.losses import probabilities, without_label
from samfed_monai.methods.fedala import AdaptiveMixing
from samfed_monai.methods.fedavg import PersonalFedAvg
from samfed_monai.networks.features import CODES, ChannelSelection, head_of, selection_of
from samfed_monai.networks.key_patterns import matched_names
from samfed_monai.protocol.message import Kind, Message
from samfed_monai.protocol.strategy import Server


def decoder_names(network: nn.Module, patterns: Sequence[str] | None = None) -> frozenset[str]:
    """Returns the names of the parameters between encoder and logits, including the head's.

    Args:
        network: a network with an ``encoder``, or MONAI's BasicUNet; any other needs ``patterns``.
        patterns: shell-style patterns of the names, which override the network's structure.

    Raises:
        Refused: ``patterns`` is no list, a pattern matches nothing, or the network's decoder is unknown.
    """
    where, names = "client_algorithm#decoder", [name for name, _ in network.named_parameters()]
    if patterns is not None:
        return frozenset(matched_names(names, patterns, where, example="decoder.*"))
    if isinstance(getattr(network, "encoder", None), torch.nn.Module):
        return frozenset(name for name in names if not name.startswith("encoder."))
    if hasattr(network, "upcat_1"):
        return frozenset(name for name in names if name.startswith(("upcat_", "final_conv.")))
    expected, hint = "a network with an encoder, or BasicUNet", 'name its decoder, for instance ["decoder.*", "head.*"]'
    raise refused(where, found=type(network).__name__, expected=expected, hint=hint)


class DecoderMixing(AdaptiveMixing):
    """FedICRA's adaptive aggregation (Lin et al., arXiv 2304.05635), as its public code does it.

    In each round encoder and running statistics are replaced by the global ones; the whole decoder starts from
    ``global + W (local - global)``, with ``W`` of ones in every round, so from the site's own. Before the local epoch
    ``W`` alone is trained on a few batches, ``W <- clip(W - rate dL/dW, 0, 1)``, and then dropped. All weights are
    sent, as in FedAvg. The first rounds, and rounds in which both sides are equal, mix nothing.

    The channel selection is inside the encoder (:mod:`samfed_monai.networks.features`), so it arrives with it. FedALA
    (``fedala``) differs: it mixes the last layers only, starts from the global ones (``W`` is the share of the global
    weights), and keeps ``W``. Ours: ``L`` is the bundle's whole loss; the public code uses the partial cross entropy
    only. The mean of ``W`` is reported as ``term_own``.

    Args:
        decoder: patterns of the decoder's parameters; ``None`` derives them from the network (:func:`decoder_names`).
        rate: step size of ``W`` (the code: 1).
        batches: number of batches per round to train ``W`` on (the code: one epoch).
        first_batches: the same in the first round that mixes; the code continues until the loss no longer changes.
        after: number of rounds before the first that mixes (the code: 50 steps, of 20 a round).
        others: arguments of :class:`TrainerAlgorithm`.

    Raises:
        Refused: an option out of its range; a network with an unknown decoder.

    Example::

        "client_algorithm": {"_target_": "samfed_monai.methods.fedicra.DecoderMixing", "batches": 4, "after": 2, …}
    """

    def __init__(
        self,
        *,
        decoder: Sequence[str] | None = None,
        rate: float = 1.0,
        batches: int = 4,
        first_batches: int = 16,
        after: int = 2,
        **others: Any,
    ) -> None:
        problems = Problems()
        problems.extend(whole("client_algorithm#after", after, "a number of rounds", least=0))
        with problems.collected():
            super().__init__(upper=1.0, rate=rate, batches=batches, first_batches=first_batches, **others)
            self.decoder = decoder_names(self.network, decoder)
        problems.refuse_if_any()
        self.after, self._has_mixed = after, False

    @property
    def mixing(self) -> bool:
        """Whether the trainer is training ``W`` rather than running the local epoch."""
        return bool(self._endpoints)

    def receive(self, round: int, rounds: int, kind: Kind, tensors: Mapping[str, Tensor]) -> dict[str, float]:
        received = self.taken(kind, tensors)
        decoder = {name: weight for name, weight in self.trained().items() if name in self.decoder}
        local = {name: weight.detach().clone() for name, weight in decoder.items()}
        self.put(received)
        endpoints = {name: (weight.detach().clone(), local[name]) for name, weight in decoder.items()}
        if round < self.after or all(torch.equal(*pair) for pair in endpoints.values()):
            return {}
        batches, self._has_mixed = self.batches if self._has_mixed else self.first_batches, True
        self._weights = {name: torch.ones_like(weight) for name, weight in local.items()}
        try:
            return {"own": self.learn(round, endpoints, batches, received)}
        finally:
            self._weights = {}

    def state_dict(self) -> dict[str, Tensor]:
        return {"begun": torch.tensor(self._has_mixed)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.reset()
        self._has_mixed = bool(state["begun"]) if "begun" in state else False

    def reset(self) -> None:
        super().reset()
        self._has_mixed = False


class HeadThenBody(PartsInTurn):
    """Trains the head with the rest of the network frozen, then the rest with the head frozen (FedICRA's code).

    The code trains the last convolution in all of a round's twenty steps except the last three. The handler is inactive
    while the client algorithm trains its mixture, which involves the whole decoder.

    Args:
        algorithm: the bundle's client algorithm, whose :attr:`~DecoderMixing.mixing` the handler reads.
        share: part of an epoch's steps that train the head, rounded up; in (0, 1).

    Raises:
        Refused: a share outside (0, 1); at ``STARTED``, a network without a head, a part without trained weights, or
            too few steps for both.

    Example::

        "before#parts": {"_target_": "samfed_monai.methods.fedicra.HeadThenBody", "algorithm": "@client_algorithm", …}
    """

    where = "before#parts (HeadThenBody)"

    def __init__(self, *, algorithm: DecoderMixing, share: float = 0.85) -> None:
        require(in_range(f"{self.where} -> share", share, "a part", above=0, below=1))
        super().__init__(share)
        self.algorithm = algorithm

    def check(self, engine: Any) -> None:
        """Finds the two parts; refuses a network that has no weights to train in one of them."""
        if self.algorithm.mixing:
            return
        head = set(head_of(engine.network).parameters())
        trained = [weight for weight in engine.network.parameters() if weight.requires_grad]
        parts = {
            "head": [weight for weight in trained if weight in head],
            "body": [weight for weight in trained if weight not in head],
        }
        self.set_parts(engine, parts, hint="remove this handler")

    def __call__(self, engine: Any) -> None:
        """Sets the trainable weights of one iteration."""
        if not self.algorithm.mixing:
            super().__call__(engine)


class Trees(NamedTuple):
    """Spanning trees of a batch's pixels, with nodes in the order of their depth.

    Args:
        node: (N,) long, the pixel of the batch for each node.
        parent: (N,) long, index of the parent; a root is its own parent.
        levels: index of the first node of each depth, then N.
        weight: (N,) float64 in [0, 1], weight of the edge to the parent.
    """

    node: Tensor
    parent: Tensor
    levels: list[int]
    weight: Tensor


def spanning_trees(guide: Tensor, sigma: float) -> Trees:
    """Builds the minimum spanning tree of each image's pixels with four neighbours each (Liang et al., CVPR 2022).

    An edge costs ``|g_i - g_j|^2``, and its weight is ``exp(-|g_i - g_j|^2 / sigma)``.

    Args:
        guide: (B, D, H, W) float, the values by which pixels are compared.
        sigma: > 0.
    """
    batch, _, height, width = guide.shape
    count = height * width
    pixel = np.arange(count).reshape(height, width)
    first = np.concatenate([pixel[:-1].ravel(), pixel[:, :-1].ravel()])
    second = np.concatenate([pixel[1:].ravel(), pixel[:, 1:].ravel()])
    flat = guide.detach().cpu().double().flatten(2).numpy()
    nodes, parents, depths, weights = [], [], [], []
    for number, values in enumerate(flat):
        cost = np.square(values[:, first] - values[:, second]).sum(0) + 1  # SciPy treats a cost of 0 as no edge
        tree = csgraph.minimum_spanning_tree(csr_array((cost, (first, second)), shape=(count, count)))
        order, predecessor = csgraph.breadth_first_order(tree, 0, directed=False)
        parent_of = np.where(predecessor[order] < 0, order, predecessor[order])
        rank = np.empty(count, dtype=np.int64)
        rank[order] = np.arange(count)
        bounds = [0, 1]  # in breadth-first order parents ascend: a depth ends where its parents leave the previous one
        while bounds[-1] < count:
            bounds.append(int(np.searchsorted(rank[parent_of], bounds[-1])))
        depths.append(np.repeat(np.arange(len(bounds) - 1), np.diff(bounds)))
        nodes.append(order + number * count)
        parents.append(rank[parent_of] + number * count)
        weights.append(np.exp(-np.square(values[:, order] - values[:, parent_of]).sum(0) / sigma))
    depth = np.concatenate(depths)
    by_depth = np.argsort(depth, kind="stable")
    position = np.empty(batch * count, dtype=np.int64)
    position[by_depth] = np.arange(batch * count)
    levels = np.searchsorted(depth[by_depth], np.arange(depth.max() + 2)).tolist()
    node, parent, weight = (np.concatenate(each)[by_depth] for each in (nodes, parents, weights))
    return Trees(torch.from_numpy(node).long(), torch.from_numpy(position[parent]), levels, torch.from_numpy(weight))


def tree_sums(values: Tensor, trees: Trees) -> Tensor:
    """Returns ``sum_j S_ij x_j``, ``S_ij`` the product of weights on the path from i to j (Song et al., NeurIPS 2019).

    Exact, in two passes: sums of subtrees go up, those of the rest of the tree come down. ``S`` is symmetric.

    Args:
        values: (N, C) float64, of all pixels of the batch.
        trees: see :func:`spanning_trees`.
    """
    sums, weight = values[trees.node], trees.weight[:, None]
    spans = [slice(start, end) for start, end in zip(trees.levels[1:-1], trees.levels[2:], strict=True)]
    for span in reversed(spans):
        sums.index_add_(0, trees.parent[span], weight[span] * sums[span])
    totals = sums.clone()
    for span in spans:
        edge = weight[span]
        totals[span] = edge * totals[trees.parent[span]] + (1 - edge.square()) * sums[span]
    return torch.empty_like(values).index_copy_(0, trees.node, totals)


class _Filtered(torch.autograd.Function):
    """``S x / S 1`` with the gradient ``S (g / S 1)``, as S is symmetric; the tree's weights get no gradient."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, trees: Trees) -> Tensor:
        ctx.trees, ctx.mass = trees, tree_sums(torch.ones_like(values[:, :1]), trees)
        return tree_sums(values, trees) / ctx.mass

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return tree_sums(gradients[0] / ctx.mass, ctx.trees), None


def tree_filtered(values: Tensor, guide: Tensor, sigma: float) -> Tensor:
    """Returns each pixel's weighted mean over its whole image; pixels near it in the tree of ``guide`` weigh more.

    Args:
        values: (B, C, H, W) float; it gets a gradient.
        guide: (B, D, H, W) float; it gets none.
        sigma: > 0; see :func:`spanning_trees`.

    Returns:
        (B, C, H, W) in the dtype and on the device of ``values``; computed on the CPU in float64.
    """
    batch, classes, height, width = values.shape
    flat = values.cpu().double().movedim(1, -1).reshape(-1, classes)
    filtered: Tensor = _Filtered.apply(flat, spanning_trees(guide, sigma))
    return filtered.view(batch, height, width, classes).movedim(-1, 1).to(values)


def tree_energy(prediction: Tensor, image: Tensor, unknown: Tensor, features: Tensor | None, *, sigma: float) -> Tensor:
    """``1/|U| sum_{i in U} sum_c |p_i^c - q_i^c|`` over the unlabelled pixels U (Liang et al., CVPR 2022, equation 3).

    ``q`` is ``p`` filtered along the tree of the image's colours, then along that of the network's features. As in
    FedICRA's code, it is not detached.

    Args:
        prediction: (B, C, H, W) float in [0, 1]; C = 1 is the foreground and counts for both classes.
        image: (B, 3, H, W) float in [0, 1].
        unknown: (B, 1, H, W) bool, the pixels without a label.
        features: (B, D, h, w) float, resized to the image; ``None`` filters by colours only.
        sigma: sigma for colours (FedICRA: 0.02); that for features is 1.

    Returns:
        A scalar >= 0; 0 if all pixels have a label.
    """
    filtered = tree_filtered(prediction, image, sigma)
    if features is not None:
        features = functional.interpolate(features.detach().float(), size=prediction.shape[-2:], mode="bilinear")
        filtered = tree_filtered(filtered, features, 1.0)
    distance = torch.where(unknown, (prediction - filtered).abs(), 0.0).sum()
    return (2 if prediction.shape[1] == 1 else 1) * distance / unknown.sum().clamp(min=1)


@dataclass(kw_only=True, eq=False)
class TreeEnergyTerm(FeatureTerm):
    """:func:`tree_energy` of the labelled batch: unlabelled pixels follow pixels of similar colour and features.

    FedICRA's network has three more heads whose outputs guide three filters in turn; ours uses one filter, with the
    input of the network's head as features. They get no gradient through the tree.

    Args:
        network: the site's network.
        name: name under which the value is logged.
        sigma: sigma for colours (FedICRA's code: 0.02).
        step: uses every ``step``-th pixel of each row and column (ours), since trees are built on the CPU.
        weight, schedule, fraction: see :class:`samfed_monai.handlers.Term`.

    Raises:
        Refused: a number out of range; a network without a head.

    Example::

        "terms#tree": {"_target_": "samfed_monai.methods.fedicra.TreeEnergyTerm", "network": "@network", "step": 2}
    """

    unlabelled = False
    checks: ClassVar = {"sigma": POSITIVE, "step": partial(COUNT, what="a number of pixels")}

    name: str = "tree"
    sigma: float = 0.02
    step: int = 1
    weight: float = 0.1

    def value(self, guidance: Guidance, engine: Any) -> Tensor:
        """Returns the tree energy."""
        output, step = engine.state.output, self.step
        prediction = probabilities(output["pred"].float())[..., ::step, ::step]
        image = output["image"].float()[..., ::step, ::step]
        unknown = without_label(output["label"])[..., ::step, ::step]
        return tree_energy(prediction, image, unknown, self._features.inputs[0], sigma=self.sigma)


class SiteCodes(PersonalFedAvg):
    """Federated averaging that sends each site its place among the sites, in a buffer of the network.

    Every message has the site's code in the buffer ``codes`` of the network's channel selection: 1 at its place, and in
    the second row 1 at every place in use; the rest is :class:`PersonalFedAvg`. The mean of the updates holds the mean
    of the codes, so that an unseen hospital is treated as a mixture of the sites (ours; the public code has no such
    hospital). If the server adds noise to the mean, only learned parameters are averaged, and an unseen hospital has
    the code of no site. Places follow the order of the sites' names.

    Example::

        "strategy": {"_target_": "samfed_monai.methods.fedicra.SiteCodes"}
    """

    def require_networks(self, networks: Mapping[str, nn.Module]) -> None:
        first, sites = next(iter(networks.values())), len(networks)
        places = selection_of(first, "strategy").codes.shape[1]
        if sites > places:
            where, hint = "network_def#site_channels", f"set it to {sites} or more"
            raise refused(where, f"{sites} sites", f"at most {places}, the limit of the network", hint)

    def attach(self, server: Server) -> SiteCodes:
        super().attach(server)
        (self.name,) = (name for name in self.global_weights if name.endswith(CODES))
        places, sites = self.global_weights[self.name].shape[1], sorted(server.sites)
        used = torch.zeros(places)
        used[: len(sites)] = 1
        self.codes = {site: torch.stack([torch.eye(places)[place], used]) for place, site in enumerate(sites)}
        return self

    def configure(self, round: int) -> dict[str, Message]:
        return {
            site: replace(message, tensors={**message.tensors, self.name: self.codes[site].clone()})
            for site, message in super().configure(round).items()
        }


@dataclass(kw_only=True, eq=False)
class SiteContrastTerm(FeatureTerm):
    """FedICRA's site contrast: the channel weights should differ from those of other sites for the same images.

    ``-1/(S - 1) sum_j mean (h(x, own) - h(x, j))^2`` over the other sites j, with ``h`` the channel weights of the
    labelled images' deepest features and no gradient through those of another site. It has the value of the public
    code's ``loss_lc``, which runs the whole network again for each other site. It is 0 for a single site.

    Args:
        network: the site's network, with ``site_channels``.
        name: name under which the value is logged; it is <= 0.
        weight, schedule, fraction: see :class:`samfed_monai.handlers.Term`.

    Raises:
        Refused: a number out of range; a network without channel selection.

    Example::

        "terms#sites": {"_target_": "samfed_monai.methods.fedicra.SiteContrastTerm", "network": "@network", …}
    """

    unlabelled = False

    name: str = "sites"
    weight: float = 0.5

    @property
    def part(self) -> ChannelSelection:
        return selection_of(self.network, self.where)

    def value(self, guidance: Guidance, engine: Any) -> Tensor:
        """Returns minus the mean squared distance to the other sites' channel weights."""
        selection, features = self.part, self._features.inputs[0].float()  # other batches may follow
        own_weights, others = selection.channel_weights(features, selection.codes[0]), selection.others()
        with torch.no_grad():
            other_weights = [selection.channel_weights(features, code) for code in others]
        distances = [(own_weights - weights).square().mean() for weights in other_weights]
        return -torch.stack(distances).mean() if distances else own_weights.sum() * 0
