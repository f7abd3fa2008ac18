"""FedProto (arXiv 2105.00243): sites exchange the mean feature of each class and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from ignite.engine import Events
from monai.engines.utils import IterationEvents
from torch import Tensor

from samfed_monai.core.errors import Problem, Problems, Refused
from samfed_monai.core.validators import in_range, require
from samfed_monai.handlers.guide import say_read
from samfed_monai.handlers.records import record, record_supervised
from samfed_monai.losses import ClassSums, class_sums, hard_label
from samfed_monai.methods.heterogeneous import PublicMaskSharing
from samfed_monai.networks.features import LastFeatures, feature_width
from samfed_monai.protocol.message import Kind, Message, MessageRefused
from samfed_monai.protocol.statistics import StatisticKind
from samfed_monai.protocol.strategy import Exchange, Strategy

if TYPE_CHECKING:
    from ignite.engine import Engine
    from torch import nn

    from samfed_monai.protocol.strategy import Server


def with_background(classes: Sequence[str] | None) -> int:
    """How many prototypes there are: one for each class, and the background's."""
    return len(classes or "1") + 1


def prototype_loss(batch: ClassSums, prototypes: Tensor, known: Tensor) -> Tensor:
    """Mean squared distance of the batch's prototypes to the given ones, over classes that both have.

    FedProto (Tan et al., arXiv 2105.00243, equation 7) with squared L2 divided by the number of channels, so that its
    weight does not depend on a network's width.

    Args:
        batch: of this batch, with gradient.
        prototypes: (K, D) float.
        known: (K,) bool, which classes of ``prototypes`` are meant.

    Returns:
        a scalar >= 0; 0 where no class is in both.
    """
    both = known & (batch.counts > 0)
    distance = (batch.means() - prototypes.detach()).pow(2).mean(dim=1)
    return (distance * both).sum() / both.sum().clamp(min=1)


class PrototypeTerm:
    """``weight * mean |prototype_c - global_c|^2``, and the site's own prototypes of the round (FedProto, 2105.00243).

    Features are the input of the network's head. A pixel belongs to the class of its label on the public batch, and to
    that of the student's own weak view on the private one, where that is surer than ``tau``. In a round without global
    prototypes it adds nothing and only collects.

    Args:
        network: the site's network.
        name: under which the value is logged.
        tau: how sure a private pixel must be, in [0.5, 1).
        weight: factor >= 0 (lambda).
        classes: names of the classes; ``None`` is one.

    Raises:
        Refused: numbers out of range; a network whose head is not known.

    Example::

        {"_target_": "samfed_monai.methods.fedproto.PrototypeTerm", "network": "@network", "weight": 1.0}
    """

    def __init__(
        self,
        *,
        network: nn.Module,
        name: str = "prototype",
        tau: float = 0.9,
        weight: float = 1.0,
        classes: Sequence[str] | None = None,
    ) -> None:
        require(
            in_range(f"terms#{name}#weight", weight, least=0),
            in_range(f"terms#{name}#tau", tau, least=0.5, below=1),
        )
        self.name, self.tau, self.weight, self.classes = name, tau, weight, with_background(classes)
        self.prototypes: Tensor | None = None
        self.known: Tensor | None = None
        self._collected: ClassSums | None = None
        # in an iteration the network trains on the public batch first, then on the private strong view
        self._features = LastFeatures(network)

    def attach(self, engine: Engine) -> None:
        say_read(engine, ("weak",))
        engine.add_event_handler(Events.STARTED, self._reset)
        engine.add_event_handler(Events.ITERATION_STARTED, self._features.listen)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._features.stop)
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self)

    def pull_to(self, prototypes: Tensor, known: Tensor) -> None:
        """Sets the prototypes of all sites: (K, D) float and (K,) bool."""
        self.prototypes, self.known = prototypes, known

    @property
    def collected(self) -> ClassSums | None:
        """Sums over the round that was trained last; ``None`` before the first step."""
        return self._collected

    def __call__(self, engine: Any) -> None:
        """Adds the term to ``engine.state.output["loss"]``."""
        record_supervised(engine)
        batch = self._batch(engine)
        detached = ClassSums(batch.sums.detach(), batch.counts.detach())
        old = self._collected
        self._collected = detached if old is None else ClassSums(old.sums + detached.sums, old.counts + detached.counts)
        if self.prototypes is None or self.known is None:
            return
        device = batch.sums.device
        value = prototype_loss(batch, self.prototypes.to(device), self.known.to(device))
        record(engine, self.name, value)
        engine.state.output["loss"] = engine.state.output["loss"] + self.weight * value

    def _batch(self, engine: Any) -> ClassSums:
        features = self._features.kept
        labels = torch.as_tensor(engine.state.batch["label"]).to(features[0].device)
        labels = labels.argmax(dim=1, keepdim=True) if labels.shape[1] > 1 else labels
        sums, counts = class_sums(features[0].float(), labels, classes=self.classes)
        guidance = getattr(engine.state, "guidance", None)
        if guidance is not None and len(features) > 1:
            label, confidence = hard_label(guidance.weak)
            sure = (confidence > self.tau).float()
            more = class_sums(features[1].float(), label, sure, classes=self.classes)
            sums, counts = sums + more.sums, counts + more.counts
        return ClassSums(sums, counts)

    def _reset(self, engine: Any) -> None:
        self._features.stop()
        self._collected = None


MEANS, COUNTS = "prototypes", "counts"

#: From where to where what a site sends may lie. A feature is a number that a network can also hold in half precision;
#: 1e12 pixels are ten million images' feature maps of 316 x 316. Sums of such products stay far inside float32.
RANGES = {MEANS: (-65504.0, 65504.0), COUNTS: (0.0, 1e12)}


class PrototypeSharing(PublicMaskSharing):
    """Takes the prototypes of all sites and gives its own (FedProto: Tan et al., arXiv 2105.00243, algorithm 1).

    The steps on ``D_p`` before the local epoch use its labels, and the pull towards the prototypes, so that every
    heterogeneous row takes the same steps.

    Args:
        term: the term that collects the site's own prototypes and pulls towards those of all, in both places.
        others: arguments of :class:`PublicMaskSharing`; its exchange and gate are not used.

    Example::

        "sharing#_target_": "samfed_monai.methods.fedproto.PrototypeSharing", "sharing#term": "@terms#prototype"
    """

    def __init__(self, *, term: PrototypeTerm, **others: Any) -> None:
        super().__init__(term=term, **others)
        self.term = term

    def receive(self, round: int, rounds: int, kind: Kind, tensors: Mapping[str, Tensor]) -> dict[str, float]:
        if tensors:
            width = feature_width(self.network)
            like = {MEANS: torch.empty(self.term.classes, width), COUNTS: torch.empty(self.term.classes)}
            Message(kind, "", 0, 1, tensors=dict(tensors)).check(up=False, like=like)
            self.term.pull_to(tensors[MEANS], tensors[COUNTS] > 0)
        return super().receive(round, rounds, Kind.METRICS, {})

    def may_share(self) -> Mapping[Kind, Mapping[str, Tensor]]:
        classes, width = self.term.classes, feature_width(self.network)
        return {Kind.PROTOTYPES: {MEANS: torch.empty(classes, width), COUNTS: torch.empty(classes)}}

    def share(self) -> tuple[Kind, dict[str, Tensor]]:
        collected = self.term.collected
        if collected is None:
            raise RuntimeError("no step was taken, so there are no prototypes to share")
        return Kind.PROTOTYPES, {MEANS: collected.means().cpu(), COUNTS: collected.counts.cpu()}


class Prototypes(Strategy):
    """The mean of the sites' prototypes, weighted by their pixels, goes back to all (FedProto, equation 6).

    The server has no network. All sites' features must have one width, which need not mean one network. An answer out
    of :data:`RANGES` is left out; where the guard caps a site's share (:attr:`UpdateGuard.largest_share`), it caps that
    of its pixels, class by class. It keeps what all sites sent until the round ends: K (D + 1) numbers each.

    Args:
        classes: names of the classes; ``None`` is one.

    Raises:
        Refused: at :meth:`attach`, sites whose features differ in width; both are named.

    Example::

        "strategy": {"_target_": "samfed_monai.methods.fedproto.Prototypes"}
    """

    exchange = Exchange(Kind.PROTOTYPES, own_networks=True, alike=False, server_model=False)
    statistic = StatisticKind.PROTOTYPES

    def __init__(self, *, classes: Sequence[str] | None = None) -> None:
        self.classes = with_background(classes)

    def attach(self, server: Server) -> Prototypes:
        widths = {site: feature_width(server.networks[site]()) for site in server.sites}
        first = server.sites[0]
        for site, width in widths.items():
            if width != widths[first]:
                found = f"{widths[first]} channels at {first}, {width} at {site}"
                hint = "choose networks of one width (mobile_sam_fpn and lite0_fpn_96: 96, deeplabv3plus_*: 256)"
                raise Refused([Problem("sites", found=found, expected="features of one width", hint=hint)])
        self._like = {MEANS: torch.zeros(self.classes, widths[first]), COUNTS: torch.zeros(self.classes)}
        super().attach(server)
        return self

    def configure(self, round: int) -> dict[str, Message]:
        self._answers = {}
        kind = Kind.PROTOTYPES if self.means else Kind.METRICS
        return {site: self._message(site, round, kind, self.means, purpose="distil") for site in self.server.sites}

    def expected(self, site: str) -> Mapping[str, Tensor] | None:
        return self._like

    def accept(self, round: int, site: str, update: Message) -> None:
        problems = Problems()
        for name, (least, most) in RANGES.items():
            values = update.tensors[name]
            if bool(((values < least) | (values > most)).any()):
                expected = f"numbers from {least:g} to {most:g}"
                problems.add(f"message -> {name}", found="one that is out of range", expected=expected)
        if len(problems):
            raise MessageRefused(problems)
        self._answers[site] = ClassSums(update.tensors[MEANS], update.tensors[COUNTS])

    def finish(self, round: int) -> None:
        total: ClassSums | None = None
        for (means, _), counts in zip(self._answers.values(), self._counted(), strict=True):
            own = ClassSums(means * counts[:, None], counts)
            total = own if total is None else ClassSums(total.sums + own.sums, total.counts + own.counts)
        if total is not None:
            self.means = {MEANS: total.means(), COUNTS: total.counts}

    def _counted(self) -> list[Tensor]:
        """The pixels that each answer counts as, (K,) each."""
        counts = [answer.counts for answer in self._answers.values()]
        guard = self.server.guard
        if guard is None or guard.largest_share is None or not counts:
            return counts
        capped = torch.stack(counts)
        for column in capped.T:
            pixels = {str(place): int(count) for place, count in enumerate(column) if count >= 1}
            for place, count in guard.counted(pixels).items():
                column[int(place)] = count
        return list(capped)

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self.means)

    def load_state_dict(self, weights: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
        super().load_state_dict(weights, state)
        self.means = dict(state)
        self._answers: dict[str, ClassSums] = {}
