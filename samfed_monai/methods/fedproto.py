"""FedProto (arXiv 2105.00243): sites exchange only the mean feature of each class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from ignite.engine import Events
from torch import Tensor, nn
from torch.nn import functional as F

from samfed_monai.core.errors import Problems, refused
from samfed_monai.core.validators import in_range
from samfed_monai.handlers.guide import Guidance
from samfed_monai.handlers.records import record_supervised
from samfed_monai.handlers.term import FeatureTerm
from samfed_monai.losses import hard_label
from samfed_monai.methods.heterogeneous import PublicMaskAlgorithm
from samfed_monai.networks.features import feature_width
from samfed_monai.protocol.message import Kind, Message, MessageRefused
from samfed_monai.protocol.statistics import StatisticKind
from samfed_monai.protocol.strategy import Exchange, Server, Strategy


def with_background(classes: Sequence[str] | None) -> int:
    """Returns the number of prototypes: one for each class, and the background's."""
    return len(classes or "1") + 1


class ClassSums(NamedTuple):
    """Sums of features and of weights per class.

    Args:
        sums: (K, D) float.
        counts: (K,) float, in pixels of the feature map.
    """

    sums: Tensor
    counts: Tensor

    def plus(self, other: ClassSums | None) -> ClassSums:
        """Returns the sum of both."""
        return self if other is None else ClassSums(other.sums + self.sums, other.counts + self.counts)

    def means(self) -> Tensor:
        """Returns the mean features, (K, D); 0 for a class without pixels."""
        return self.sums / self.counts.clamp(min=1e-6)[:, None]


def class_sums(features: Tensor, labels: Tensor, weights: Tensor | None = None, *, classes: int) -> ClassSums:
    """Adds up the features of each class's pixels.

    Args:
        features: (B, D, h, w) float.
        labels: (B, 1, H, W) class indices; resized to the features by nearest-exact interpolation.
        weights: (B, 1, H, W) float >= 0, resized in the same way; ``None`` counts every pixel.
        classes: K, including the background.
    """
    size = features.shape[-2:]
    index = F.interpolate(labels.float(), size, mode="nearest-exact").long()[:, 0]
    one_hot = F.one_hot(index, classes).movedim(-1, 1).to(features.dtype)
    if weights is not None:
        one_hot = one_hot * F.interpolate(weights.to(features.dtype), size, mode="nearest-exact")
    return ClassSums(torch.einsum("bkhw,bdhw->kd", one_hot, features), one_hot.sum(dim=(0, 2, 3)))


def prototype_loss(batch: ClassSums, prototypes: Tensor, known: Tensor) -> Tensor:
    """Mean squared distance of the batch's prototypes to the given ones, over classes that both have.

    FedProto (Tan et al., arXiv 2105.00243, equation 7), with squared L2 divided by the number of channels so that its
    weight does not depend on a network's width.

    Args:
        batch: sums of this batch, with gradient.
        prototypes: (K, D) float.
        known: (K,) bool, whether ``prototypes`` has the class.

    Returns:
        a scalar >= 0; 0 if no class is in both.
    """
    both = known & (batch.counts > 0)
    return ((batch.means() - prototypes.detach()).pow(2).mean(dim=1) * both).sum() / both.sum().clamp(min=1)


@dataclass(kw_only=True, eq=False)
class PrototypeTerm(FeatureTerm):
    """``weight * mean |prototype_c - global_c|^2``, and the site's own prototypes of the round (FedProto, 2105.00243).

    Features are the input of the network's head. The class of a pixel is its label on the public batch; on the private
    batch it is the student's prediction for the weak view, where its confidence exceeds ``tau``. In a round without
    global prototypes the term adds nothing to the loss and only collects.

    Args:
        network: the site's network.
        name: name under which the value is logged.
        tau: minimum confidence of a private pixel, in [0.5, 1).
        classes: names of the classes; ``None`` means one class.
        weight, schedule, fraction: see :class:`samfed_monai.handlers.Term`; the weight is lambda.

    Raises:
        Refused: numbers out of range; a network with an unknown head.

    Example::

        {"_target_": "samfed_monai.methods.fedproto.PrototypeTerm", "network": "@network", "weight": 1.0}
    """

    unlabelled = False
    checks: ClassVar = {"tau": partial(in_range, least=0.5, below=1)}

    name: str = "prototype"
    tau: float = 0.9
    classes: Sequence[str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.count = with_background(self.classes)
        #: Prototypes of all sites, (K, D) float, and (K,) bool, whether a class has one.
        self.prototypes: tuple[Tensor, Tensor] | None = None
        #: Sums over the last round of training; ``None`` before its first step.
        self.collected: ClassSums | None = None
        self._batch_sums: ClassSums

    @property
    def reads(self) -> tuple[str, ...]:
        return ("weak",)

    def attach(self, engine: Any) -> None:
        super().attach(engine)
        engine.add_event_handler(Events.STARTED, self._start_round)

    def __call__(self, engine: Any) -> None:
        """Collects features, and adds the term if there are global prototypes."""
        record_supervised(engine)
        self._batch_sums = self._sums(engine)
        self.collected = ClassSums(*(each.detach() for each in self._batch_sums)).plus(self.collected)
        if self.prototypes is not None:
            super().__call__(engine)

    def value(self, guidance: Guidance | None, engine: Any) -> Tensor:
        """Returns the distance to the prototypes of all sites."""
        assert self.prototypes is not None
        return prototype_loss(self._batch_sums, *(each.to(self._batch_sums.sums.device) for each in self.prototypes))

    def _sums(self, engine: Any) -> ClassSums:
        features = self._features.inputs  # first of the public batch, then of the private strong view
        labels = torch.as_tensor(engine.state.batch["label"]).to(features[0].device)
        labels = labels.argmax(dim=1, keepdim=True) if labels.shape[1] > 1 else labels
        sums = class_sums(features[0].float(), labels, classes=self.count)
        guidance = getattr(engine.state, "guidance", None)
        if guidance is None or len(features) == 1:
            return sums
        label, confidence = hard_label(guidance.weak)
        return class_sums(features[1].float(), label, (confidence > self.tau).float(), classes=self.count).plus(sums)

    def _start_round(self, engine: Any) -> None:
        self.collected = None


MEANS, COUNTS = "prototypes", "counts"

#: Accepted ranges of a site's values. A feature must fit half precision; 1e12 pixels are ten million feature maps of
#: 316 x 316. Sums of their products stay well within float32.
RANGES = {MEANS: (-65504.0, 65504.0), COUNTS: (0.0, 1e12)}


class PrototypeAlgorithm(PublicMaskAlgorithm):
    """Receives the prototypes of all sites and sends its own (FedProto: Tan et al., arXiv 2105.00243, algorithm 1).

    The steps on ``D_p`` before the local epoch use its labels and the term, so that every heterogeneous method takes
    the same steps.

    Args:
        term: the term that collects the site's prototypes and pulls towards those of all sites, in both phases.
        others: arguments of :class:`PublicMaskAlgorithm`; its exchange and gate are not used.

    Example::

        "client_algorithm#_target_": "samfed_monai.methods.fedproto.PrototypeAlgorithm",
        "client_algorithm#term": "@terms#prototype"
    """

    def __init__(self, *, term: PrototypeTerm, **others: Any) -> None:
        super().__init__(term=term, **others)
        self.term = term

    def receive(self, round: int, rounds: int, kind: Kind, tensors: Mapping[str, Tensor]) -> dict[str, float]:
        if tensors:
            Message(kind, "", 0, 1, tensors=dict(tensors)).check(up=False, like=self.may_share()[Kind.PROTOTYPES])
            self.term.prototypes = tensors[MEANS], tensors[COUNTS] > 0
        return super().receive(round, rounds, Kind.METRICS, {})

    def may_share(self) -> Mapping[Kind, Mapping[str, Tensor]]:
        classes, width = self.term.count, feature_width(self.network)
        return {Kind.PROTOTYPES: {MEANS: torch.empty(classes, width), COUNTS: torch.empty(classes)}}

    def share(self) -> tuple[Kind, dict[str, Tensor]]:
        collected = self.term.collected
        if collected is None:
            raise RuntimeError("no step was taken, so there are no prototypes to share")
        return Kind.PROTOTYPES, {MEANS: collected.means().cpu(), COUNTS: collected.counts.cpu()}


class Prototypes(Strategy):
    """Sends the mean of the sites' prototypes, weighted by their pixels, to all (FedProto, equation 6).

    The server has no network. All sites' features must have the same width; their networks may differ. An update
    outside :data:`RANGES` is left out. If the guard caps a site's share (:attr:`UpdateGuard.largest_share`), it caps
    the share of its pixels, class by class. All updates are kept until the round ends: K (D + 1) numbers each.

    Args:
        classes: names of the classes; ``None`` means one class.

    Raises:
        Refused: before the run, two sites whose features differ in width; the message names them.

    Example::

        "strategy": {"_target_": "samfed_monai.methods.fedproto.Prototypes"}
    """

    exchange = Exchange(Kind.PROTOTYPES, own_networks=True, alike=False, server_model=False)
    statistic = StatisticKind.PROTOTYPES

    def __init__(self, *, classes: Sequence[str] | None = None) -> None:
        self.classes = with_background(classes)

    def require_networks(self, networks: Mapping[str, nn.Module]) -> None:
        (first, expected), *others = ((site, feature_width(network)) for site, network in networks.items())
        for site, width in others:
            if width != expected:
                found = f"{expected} channels at {first}, {width} at {site}"
                hint = "choose networks of the same width (mobile_sam_fpn and lite0_fpn_96: 96, deeplabv3plus_*: 256)"
                raise refused("sites", found=found, expected="features of the same width", hint=hint)

    def attach(self, server: Server) -> Strategy:
        width = feature_width(server.networks[server.sites[0]]())
        self._like = {MEANS: torch.zeros(self.classes, width), COUNTS: torch.zeros(self.classes)}
        return super().attach(server)

    def configure(self, round: int) -> dict[str, Message]:
        self._updates: dict[str, ClassSums] = {}
        kind = Kind.PROTOTYPES if self.means else Kind.METRICS
        return {site: self.message(site, round, kind, self.means, purpose="distil") for site in self.server.sites}

    def expected(self, site: str) -> Mapping[str, Tensor] | None:
        return self._like

    def accept(self, round: int, site: str, update: Message) -> None:
        problems = Problems()
        for name, (least, most) in RANGES.items():
            values = update.tensors[name]
            if bool(((values < least) | (values > most)).any()):
                problems.add(f"message -> {name}", "a number outside this range", f"numbers from {least:g} to {most:g}")
        if len(problems):
            raise MessageRefused(problems)
        self._updates[site] = ClassSums(update.tensors[MEANS], update.tensors[COUNTS])

    def finish(self, round: int) -> None:
        total: ClassSums | None = None
        for (means, _), counts in zip(self._updates.values(), self._capped_counts(), strict=True):
            total = ClassSums(means * counts[:, None], counts).plus(total)
        if total is not None:
            self.means = {MEANS: total.means(), COUNTS: total.counts}

    def _capped_counts(self) -> list[Tensor]:
        """Returns the pixels that each update counts as, (K,) each."""
        counts = [update.counts for update in self._updates.values()]
        guard = self.server.guard
        if guard is None or guard.largest_share is None or not counts:
            return counts
        capped = torch.stack(counts)
        for column in capped.T:
            pixels = {str(index): int(count) for index, count in enumerate(column) if count >= 1}
            for index, count in guard.counted(pixels).items():
                column[int(index)] = count
        return list(capped)

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self.means)

    def load_state_dict(self, weights: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
        super().load_state_dict(weights, state)
        self.means = dict(state)
