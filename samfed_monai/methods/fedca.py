"""FedCA (arXiv 2010.08982): the encoder is trained first, by contrast with a shared dictionary and alignment."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from ignite.engine import Events
from monai.engines.utils import IterationEvents
from monai.networks.utils import eval_mode
from torch import Tensor, nn
from torch.nn import functional

from samfed_monai.core.errors import refused
from samfed_monai.core.validators import BELOW_1, COUNT, NOT_NEGATIVE, POSITIVE, require, switch, whole
from samfed_monai.handlers.guide import Guidance, NetworkCopy
from samfed_monai.handlers.records import record
from samfed_monai.handlers.rounds import round_of
from samfed_monai.handlers.term import Term
from samfed_monai.methods.fedavg import FedAvg, FedAvgWithStatistics
from samfed_monai.networks.features import encoder_maps, require_encoder
from samfed_monai.protocol.message import Message
from samfed_monai.protocol.statistics import CollectedStatistics, MeansOfGroups, StatisticKind
from samfed_monai.protocol.strategy import Server, Strategy


def contrastive_loss(
    queries: Tensor, keys: Tensor, dictionary: Tensor, temperature: float, same_image: Tensor | None = None
) -> Tensor:
    """InfoNCE of each query with its own key and all keys of the dictionary (He et al., arXiv 1911.05722).

    ``-log exp(q k / T) / (exp(q k / T) + sum_d exp(q d / T))``, the mean over queries.

    Args:
        queries, keys: (B, D) float of length 1; keys without gradient.
        dictionary: (N, D) float of length 1; N may be 0, and the loss is then 0.
        temperature: T > 0.
        same_image: (B, N) bool, keys of the query's own image, which are excluded; ``None`` excludes none.

    Returns:
        a scalar >= 0.
    """
    negatives = queries @ dictionary.T
    if same_image is not None:
        negatives = negatives.masked_fill(same_image, -torch.inf)
    logits = torch.cat([(queries * keys).sum(dim=1, keepdim=True), negatives], dim=1) / temperature
    return functional.cross_entropy(logits, torch.zeros(len(queries), dtype=torch.long, device=queries.device))


def alignment_loss(own: Tensor, base: Tensor) -> Tensor:
    """Mean squared distance of two encoders' features of the same public images (FedCA, alignment module).

    Args:
        own: (B, D) float, with gradient.
        base: (B, D) float, without gradient.
    """
    return (own - base.detach()).square().sum(dim=1).mean()


class Dictionary:
    """A queue of the most recent keys.

    Args:
        length: maximum number of keys, > 0.
    """

    def __init__(self, length: int) -> None:
        self.length = length
        self._keys: Tensor | None = None
        self._images: list[str] = []

    def like(self, keys: Tensor) -> Tensor:
        """Returns all keys, (N, D); while empty, a (0, D) tensor like ``keys``."""
        return keys.new_zeros(0, keys.shape[1]) if self._keys is None else self._keys

    def belongs_to(self, images: Sequence[str]) -> Tensor:
        """Whether each key belongs to each of the images, (B, N) bool."""
        rows = [[image == key for key in self._images] for image in images]
        return torch.tensor(rows, dtype=torch.bool).reshape(len(images), len(self._images))

    def add(self, keys: Tensor, images: Sequence[str]) -> None:
        """Appends keys (B, D), one per image, and drops the oldest."""
        keys = keys.detach()
        self._keys = (keys if self._keys is None else torch.cat([self._keys, keys]))[-self.length :]
        self._images = [*self._images, *images][-self.length :]


@dataclass(kw_only=True, eq=False)
class ContrastiveTerm(Term):
    """Contrast on the site's images and alignment on public ones, in the first rounds (FedCA: Zhang et al. 2010.08982).

    Features are the mean over the encoder's deepest map, normalised to length 1. A query is the student's feature of
    the strong view; its key is the feature of the weak view from a moving average of the student. The rest of the
    dictionary are keys of earlier batches, without those of the same image, and the features that the other sites
    shared (:class:`SharedFeatures`). Alignment keeps the student's features of the public batch near those of the
    network at the start of the round (the paper: of a base network trained on a public set). The student is in train
    mode, the other two in eval mode, so that batch norm separates even equal encoders; the alignment includes this.

    ``alone`` is the paper's form: in these rounds the loss is contrast and alignment only, without any label, and the
    decoder does not change; the strategy :class:`ContrastBeforeLabels` then runs the warm start. Otherwise they are
    added to the loss of the public labels and every other term.

    Ours: the keys of a site's own images are dropped at the start of each round. There is no projection head.

    After the first ``rounds`` rounds the term computes nothing and draws no random number: a run with ``rounds`` 0
    equals one without the term to the bit. In its rounds a step costs three more forward passes and two backward
    passes. It records ``contrast_alignment``.

    Args:
        name: name under which the contrast is logged.
        rounds: number of first rounds in which it is used, >= 0.
        queue: length of the dictionary, >= 1.
        temperature: T > 0.
        decay: decay of the moving average, in [0, 1).
        alignment: factor of the alignment, relative to the contrast, >= 0.
        alone: whether it is the whole loss of its rounds.
        weight, schedule, fraction: see :class:`samfed_monai.handlers.Term`.

    Raises:
        Refused: an argument out of range; at ``STARTED``, a network whose encoder cannot be reached.

    Example::

        {"_target_": "samfed_monai.methods.fedca.ContrastiveTerm", "rounds": 3, "queue": 256, "weight": 0.1}
    """

    of_network = (require_encoder,)
    checks: ClassVar = {"rounds": partial(whole, least=0), "queue": COUNT, "temperature": POSITIVE, "decay": BELOW_1}
    checks |= {"alignment": NOT_NEGATIVE}

    name: str = "contrast"
    rounds: int = 3
    queue: int = 256
    temperature: float = 0.1
    decay: float = 0.99
    alignment: float = 1.0
    alone: bool = False
    weight: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        self._value = torch.zeros(())
        self.dictionary = Dictionary(self.queue)
        #: Features of the other sites, (N, D) float of length 1; ``None`` until some arrive.
        self.shared: Tensor | None = None
        self._base, self._average = NetworkCopy(), NetworkCopy()

    def attach(self, engine: Any) -> None:
        """Binds the term unless ``rounds`` is 0."""
        if self.rounds:
            super().attach(engine)
            engine.add_event_handler(Events.STARTED, self._start_round)
            engine.add_event_handler(Events.ITERATION_COMPLETED, self._update_average)

    def __call__(self, engine: Any) -> None:
        """Adds the term in its rounds."""
        if self._is_active(engine):
            super().__call__(engine)

    def value(self, guidance: Guidance, engine: Any) -> Tensor:
        """Returns the contrast plus ``alignment`` times the alignment."""
        queries = _features(engine, guidance.view("image_strong", where=self.where), engine.network)
        public = torch.as_tensor(engine.state.batch["image"]).to(queries.device)
        with torch.no_grad():
            keys = _features(engine, guidance.view("image", where=self.where), self._average.network)
            base = _features(engine, public, self._base.network) if self.alignment else None
        images = guidance.batch.get("image_sha256")  # a user's own dataset may not have it
        dictionary = self.dictionary.like(keys)
        if self.shared is not None:
            dictionary = torch.cat([dictionary, self.shared.to(keys)])
        same_image = None if images is None else self.dictionary.belongs_to(images).to(keys.device)
        if same_image is not None:  # shared features are of other images
            same_image = functional.pad(same_image, (0, len(dictionary) - same_image.shape[1]))
        value = contrastive_loss(queries, keys, dictionary, self.temperature, same_image)
        self.dictionary.add(keys, images or [""] * len(keys))
        if base is not None:
            alignment = alignment_loss(_features(engine, public, engine.network), base)
            record(engine, f"{self.name}_alignment", alignment)
            value = value + self.alignment * alignment
        self._value = value
        return value

    def _is_active(self, engine: Any) -> bool:
        return round_of(engine)[0] < self.rounds

    def _replace_loss(self, engine: Any) -> None:
        if self._is_active(engine):
            factor = self.weight * self._schedule(*round_of(engine), self.fraction)
            engine.state.output["loss"] = factor * self._value

    def _start_round(self, engine: Any) -> None:
        last = IterationEvents.LOSS_COMPLETED
        if self.alone and not engine.has_event_handler(self._replace_loss, last):
            engine.add_event_handler(last, self._replace_loss)  # bound here to run after every other term
        self.dictionary = Dictionary(self.dictionary.length)
        if self._is_active(engine):
            self._base.sync(engine.network)
            self._average.sync(engine.network)

    def _update_average(self, engine: Any) -> None:
        if self._is_active(engine):
            self._average.average(engine.network, self.decay)


def _features(engine: Any, images: Tensor, network: nn.Module) -> Tensor:
    return features_of(network, lambda: engine.inferer(images, network))


def features_of(network: nn.Module, run: Callable[[], object]) -> Tensor:
    """Returns the means over the encoder's deepest map in one call of ``run``, normalised to length 1: (B, D)."""
    return functional.normalize(encoder_maps(network, run)[-1].float().mean(dim=(2, 3)), dim=1)


FEATURES = "features"


@dataclass(kw_only=True, eq=False)
class SharedFeatures(MeansOfGroups):
    """Sends a site's part of the common dictionary after each round of contrast, and receives those of the others.

    The paper aggregates the representations of every client's images and shares them with all. Here an entry is the
    mean over the features of several images, as many as the policy for image-derived statistics requires; received
    features are normalised to length 1.

    Args:
        network: the site's network.
        term: the term that gets the others' features before each local epoch.
        entries: number of means that leave the site.
        data, transform, seed, site: see :class:`MeansOfGroups`.

    Raises:
        Refused: a number out of its range.

    Example::

        "statistics": {
            "_target_": "samfed_monai.methods.fedca.SharedFeatures", "data": "@images", "network": "@network",
            "transform": "@validate#preprocessing", "term": "@terms#contrast", "seed": "@seed", "site": "@site"
        }
    """

    kind, name = StatisticKind.FEATURES, FEATURES
    network: nn.Module
    term: ContrastiveTerm
    entries: int = 16

    def like(self) -> Mapping[str, Tensor]:
        return {FEATURES: torch.zeros(self.entries, len(self.entry(torch.zeros(3, 64, 64))))}

    @torch.no_grad()
    def entry(self, image: Tensor) -> Tensor:
        device = next(self.network.parameters()).device
        with eval_mode(self.network):
            return features_of(self.network, lambda: self.network(image[None].to(device)))[0].cpu()

    def receive(self, tensors: Mapping[str, Tensor]) -> None:
        others = self.taken(tensors)
        self.term.shared = None if others is None else functional.normalize(others, dim=1)


class ContrastBeforeLabels(FedAvgWithStatistics):
    """FedAvg whose first rounds come before the warm start: FedCA's pre-training of the encoder (stage 0).

    Those rounds start from the untrained network; after the last of them the server trains their result on the public
    set (the warm start, which any other run does before round 0), and the rounds with labels continue from there. With
    0 such rounds it is FedAvg, with the warm start before round 0. Schedules count these rounds too.

    From the second of those rounds on, each site receives the common dictionary: the features that the others shared
    at the end of the previous round (:class:`SharedFeatures`, under ``privacy#statistics#features``).

    Args:
        rounds: number of rounds before the warm start, >= 0; ``rounds`` of the bundle's :class:`ContrastiveTerm`.
        share: whether there is a common dictionary; without it, or with one round, only weights leave a site.
        entries: number of entries per site, as in :class:`SharedFeatures`.

    Raises:
        Refused: an option out of its range; before the run, no round left for the labels.

    Example::

        "strategy": {"_target_": "samfed_monai.methods.fedca.ContrastBeforeLabels", "rounds": "@terms#contrast#rounds"}
    """

    def __init__(self, *, rounds: int = 0, share: bool = True, entries: int = 16) -> None:
        require(
            whole("strategy#rounds", rounds, least=0),
            switch("strategy#share", share),
            whole("strategy#entries", entries, least=1),
        )
        self.rounds_before_warm_start, self.entries = rounds, entries
        self.statistic = StatisticKind.FEATURES if share and rounds > 1 else None
        if self.statistic is None:
            self.exchange = FedAvg.exchange

    def require_rounds(self, rounds: int) -> None:
        if self.rounds_before_warm_start >= rounds:
            found = f"{self.rounds_before_warm_start} of {rounds} rounds before the warm start"
            hint = "raise rounds, or lower terms#contrast#rounds"
            raise refused("strategy#rounds", found, "at least one more round, for the labels", hint)

    def attach(self, server: Server) -> Strategy:
        like: dict[str, Tensor] = {}
        if self.statistic is not None:
            network = server.networks[server.sites[0]]().eval()
            width = features_of(network, lambda: network(torch.zeros(1, 3, 64, 64))).shape[1]
            like = {FEATURES: torch.zeros(self.entries, width)}
        self.collected = CollectedStatistics(StatisticKind.FEATURES, like)
        return super().attach(server)

    def with_requests(self, round: int, messages: dict[str, Message]) -> dict[str, Message]:
        requests = self.statistic is not None and round < self.rounds_before_warm_start - 1
        return {**messages, **self.collected.with_requests(messages if requests else {}, again=True)}

    def refine(self, round: int) -> None:
        if round == self.rounds_before_warm_start - 1:
            self.collected.load_state_dict({})
            if self.server.warm_start is not None:
                self.global_weights = self.server.warm_start(self.global_weights)
