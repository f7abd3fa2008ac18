"""FedDA (arXiv 2509.23907): a site's features are aligned with the global network's, or with other sites' in turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from ignite.engine import Events
from monai.engines.utils import IterationEvents
from monai.networks.nets import PatchDiscriminator
from torch import Tensor, nn
from torch.nn import functional

from samfed_monai.core.errors import refused
from samfed_monai.core.validators import POSITIVE
from samfed_monai.handlers.guide import GlobalGuide, Guidance
from samfed_monai.handlers.records import record
from samfed_monai.handlers.term import Term
from samfed_monai.methods.fedavg import FedAvg
from samfed_monai.networks.features import encoder_maps, require_encoder
from samfed_monai.protocol.message import Kind, Message
from samfed_monai.protocol.strategy import Exchange, TrainerAlgorithm, require_least


def reversed_gradient(values: Tensor) -> Tensor:
    """Returns ``values`` with the gradient multiplied by -1 (Ganin et al., JMLR 2016, section 4.2)."""
    return 2 * values.detach() - values


_LEAST_SIDE = 8  # minimum side in pixels of the discriminator's input; its three convolutions reduce it to 2


@dataclass(kw_only=True, eq=False)
class DomainAlignmentTerm(Term):
    """Aligns the encoder's features of the site's images with those of another network (FedDA).

    Zhou et al. (arXiv 2509.23907): source features are the local network's, target features the global one's
    (FedDA-joint) or another site's (FedDA-cyclic, with :class:`TargetGuide` as guide); we had the abstract and public
    summaries. MONAI's :class:`PatchDiscriminator` learns to distinguish the two, and the network is trained against it
    by gradient reversal in one backward pass; the discriminator has its own Adam optimizer. Its input is the deepest
    map of at least 8 pixels a side, of the weak view. The site's network is in train mode, as in its other passes, the
    target in eval mode, so that batch norm separates even equal networks.

    Ours: the discriminator is reset in every round, so that a round stays a function of (weights, seed, site, round);
    it is neither kept nor sent.

    A step costs two more forward passes and one more backward pass. The term records ``separated``, the share of
    patches that the discriminator classifies correctly; one half is success.

    Args:
        guide: the network whose features are the target.
        name: name under which the value is logged.
        rate: learning rate of the discriminator's Adam, > 0.
        weight, schedule, fraction: see :class:`samfed_monai.handlers.Term`.

    Raises:
        Refused: an argument out of range; at ``STARTED``, a network whose encoder cannot be reached; at the first
            batch, images so small that no feature map has 8 pixels a side.

    Example::

        {"_target_": "samfed_monai.methods.fedda.DomainAlignmentTerm", "guide": "@guides#global", "weight": 0.01}
    """

    of_network = (require_encoder,)
    checks: ClassVar = {"rate": POSITIVE}

    guide: GlobalGuide
    name: str = "domain"
    rate: float = 1e-4
    weight: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        self._discriminator: nn.Module | None = None
        self._optimizer: torch.optim.Optimizer | None = None

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.guide.name,)

    def attach(self, engine: Any) -> None:
        """Binds the term and the discriminator's optimizer step."""
        super().attach(engine)
        engine.add_event_handler(Events.STARTED, self._reset)
        engine.add_event_handler(IterationEvents.MODEL_COMPLETED, self._step_discriminator)

    def value(self, guidance: Guidance, engine: Any) -> Tensor:
        """Returns the discriminator's cross entropy."""
        image = guidance.view("image", where=self.where)
        local = self._features(engine, image, engine.network)
        with torch.no_grad():
            target = self._features(engine, image, self.guide.network)
        if self._discriminator is None:
            self._discriminator = PatchDiscriminator(
                spatial_dims=2, channels=16, in_channels=local.shape[1], out_channels=1, num_layers_d=1
            ).to(local.device)
            self._optimizer = torch.optim.Adam(self._discriminator.parameters(), self.rate)
        # in one batch: normalised separately, features of different scale would look alike
        local_logits, target_logits = self._discriminator(torch.cat([reversed_gradient(local), target]))[-1].chunk(2)
        record(engine, "separated", (torch.cat([local_logits < 0, target_logits > 0]).float().mean()))
        zeros, ones = torch.zeros_like(local_logits), torch.ones_like(target_logits)
        cross_entropy = functional.binary_cross_entropy_with_logits
        return (cross_entropy(local_logits, zeros) + cross_entropy(target_logits, ones)) / 2

    def _features(self, engine: Any, image: Tensor, network: nn.Module) -> Tensor:
        maps = encoder_maps(network, lambda: engine.inferer(image, network))
        large_enough = [each for each in maps if min(each.shape[-2:]) >= _LEAST_SIDE]
        if not large_enough:
            found = f"images of {image.shape[-1]} pixels, whose feature maps are smaller"
            expected = f"a feature map of at least {_LEAST_SIDE} pixels a side"
            raise refused(self.where, found, expected, "raise image_size")
        return large_enough[-1].float()

    def _reset(self, engine: Any) -> None:
        self._discriminator = self._optimizer = None

    def _step_discriminator(self, engine: Any) -> None:
        if self._optimizer is not None:
            self._optimizer.step()
            self._optimizer.zero_grad()


TARGET = "target."
"""Prefix in a message for the names of another site's weights."""


class TargetGuide(GlobalGuide):
    """The network of another site; the round's global network if none was sent, as in the first round.

    Args:
        name: name by which terms refer to this guide.

    Example::

        "guides#global": {"_target_": "samfed_monai.methods.fedda.TargetGuide", "name": "global"}
    """

    def __init__(self, *, name: str = "global") -> None:
        super().__init__(name=name)
        self._target: dict[str, Tensor] = {}

    def set_target(self, weights: Mapping[str, Tensor]) -> None:
        """Sets the weights of the next round's target; an empty mapping selects the global network."""
        self._target = dict(weights)

    def _copy_network(self, engine: Any) -> None:
        super()._copy_network(engine)
        if self._target and self.is_needed(engine):
            self.network.load_state_dict(self._target, strict=False)


class TargetAlgorithm(TrainerAlgorithm):
    """Trains from the global weights, as usual, and passes another site's weights to the guide.

    Args:
        guide: the guide that gets another site's weights.
        others: arguments of :class:`TrainerAlgorithm`.

    Example::

        "client_algorithm": {"_target_": "samfed_monai.methods.fedda.TargetAlgorithm", "guide": "@guides#global", …}
    """

    def __init__(self, *, guide: TargetGuide, **others: Any) -> None:
        super().__init__(**others)
        self.guide = guide

    def receive(self, round: int, rounds: int, kind: Kind, tensors: Mapping[str, Tensor]) -> dict[str, float]:
        target = {name[len(TARGET) :]: tensor for name, tensor in tensors.items() if name.startswith(TARGET)}
        global_weights = {name: tensor for name, tensor in tensors.items() if not name.startswith(TARGET)}
        received = self.taken(kind, global_weights)
        if target:
            Message(Kind.WEIGHTS, "", 0, 1, tensors=target).check(up=False, like=global_weights)
        self.guide.set_target(target)
        self.put(received)
        return {}


class CyclicTargets(FedAvg):
    """FedAvg that also sends each site another site's weights of the previous round (FedDA-cyclic).

    In round r the site at place k gets those of the site at place ``k + 1 + (r - 1) mod (N - 1)``, so that in N - 1
    rounds it gets those of all others. In the first round, and if that site did not reply in the previous one, the
    target is the global network. Our reading of "cyclic": we had summaries of the paper.

    **Bytes**: ``3 N`` models down per round (FedAvg: ``N``): the new one to score, then that one and a target.
    **Models of single sites go to other sites** unchanged, not only their mean. Memory and each stored round: two more
    models than sites.

    Example::

        "strategy": {"_target_": "samfed_monai.methods.fedda.CyclicTargets"}
    """

    exchange = Exchange()  # needs each site's update, not only the mean

    def require_sites(self, sites: Sequence[str]) -> None:
        hint = "choose the variant fedda, whose target is the global network"
        require_least(sites, 2, "one as the target of another", hint)

    def target_of(self, site: str, round: int) -> str:
        """Returns the site whose network is ``site``'s target in ``round``, >= 1."""
        sites = self.server.sites
        return sites[(list(sites).index(site) + 1 + (round - 1) % (len(sites) - 1)) % len(sites)]

    def configure(self, round: int) -> dict[str, Message]:
        super().configure(round)
        self._current: dict[str, dict[str, Tensor]] = {}
        messages = {}
        for site in self.server.sites:
            other = self._previous.get(self.target_of(site, round), {}) if round else {}
            tensors = {**self.global_weights, **{TARGET + name: tensor for name, tensor in other.items()}}
            messages[site] = self.message(site, round, Kind.WEIGHTS, tensors, purpose="distil")
        return messages

    def accept(self, round: int, site: str, update: Message) -> None:
        super().accept(round, site, update)
        self._current[site] = dict(update.tensors)

    def finish(self, round: int) -> None:
        super().finish(round)
        self._previous, self._current = self._current, {}

    def state_dict(self) -> dict[str, Tensor]:
        return self._pack_models(self._previous, "before_")

    def load_state_dict(self, weights: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
        super().load_state_dict(weights, state)
        self._previous = self._unpack_models(state, "before_")
