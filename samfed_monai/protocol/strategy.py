"""What a server does with the sites' answers: a strategy knows nothing of how messages travel."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING, Any

import torch

from samfed_monai.core.errors import Problem, Problems, Refused
from samfed_monai.protocol.message import Envelope, Kind, MessageRefused

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Server:
    """The server's side of a run.

    Args:
        sites: names of the sites that train.
        rounds: number of rounds.
        seed: the run's seed.
        weights: the server's network before round 0, names to tensors.
        guard: limits the norm of weight updates; ``None`` takes every finite one.
        bench: builds the server's own network with its public set: the bundle's ``sharing``, as a site has it, on the
            server's architecture. Called by strategies that train at the server, and by them only.
        networks: site to a builder of an empty network as that site has it; for strategies that need one.
        keeps_parts: whether part of the network is personal: ``weights`` are then its shared names alone, and going
            back to a stored model takes the sites' states.
    """

    sites: Sequence[str]
    rounds: int
    seed: int = 0
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    guard: UpdateGuard | None = None
    bench: Callable[[], Any] | None = None
    networks: Mapping[str, Callable[[], nn.Module]] = field(default_factory=dict)
    keeps_parts: bool = False

    def open_bench(self, variant: str) -> Any:
        """The server's own network with its public set: whatever sharing the variant has.

        Args:
            variant: one that has what is missing otherwise, for the message.

        Raises:
            Refused: the bundle has no ``sharing``.
        """
        if self.bench is None:
            found, expected = "no sharing in the bundle", "a PublicMaskSharing"
            mend = f"use a variant that has one, for instance {variant}"
            raise Refused([Problem("strategy", found=found, expected=expected, mend=mend)])
        return self.bench()


WORDS = {
    Kind.WEIGHTS: "weights",
    Kind.SOFT_MASKS: "predictions",
    Kind.PROTOTYPES: "prototypes",
    Kind.METRICS: "none",
}
"""What travels, in the words of ``results.json`` and of methods' declarations, by what sites answer with."""


@dataclass(frozen=True)
class Exchange:
    """What the rounds of a strategy exchange, and who ends with which model.

    Args:
        answer: what sites must answer with.
        own_networks: whether each site keeps a network of its own, which is then what is evaluated there.
        alike: whether all sites must have the same network, because their weights meet.
        server_model: whether the server has a model; without one :attr:`Strategy.global_weights` stays empty.
        tailored: whether the server makes each site a model of its own.

    Example::

        exchange = Exchange(Kind.PROTOTYPES, own_networks=True, alike=False, server_model=False)
    """

    answer: Kind = Kind.WEIGHTS
    own_networks: bool = False
    alike: bool = True
    server_model: bool = True
    tailored: bool = False

    @property
    def word(self) -> str:
        """What travels, in the words of ``results.json``."""
        return WORDS[self.answer]


class Strategy(ABC):
    """Server side of a round: :meth:`configure`, then :meth:`accept` for each answer, :meth:`finish`, :meth:`refine`.

    The constructor takes options, as a bundle's JSON names them (``strategy``); :meth:`attach` binds the run. Answers
    are taken one by one so that no more than one of them has to be in memory. A strategy does not evaluate, store or
    send anything.
    """

    #: The server's model, which is stored, and evaluated at sites that take no part; names to tensors on the CPU.
    #: Empty where the server has none.
    global_weights: dict[str, Tensor]

    #: What a round exchanges; said by the class, or by the instance where it depends on an option.
    exchange: Exchange = Exchange()

    server: Server

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        flags = {name: vars(cls)[name] for name in _FLAGS if name in vars(cls)}
        if flags:
            cls.exchange = now = _of_flags(flags, cls.exchange)
            new = f"Kind.{now.answer.name}, own_networks={now.own_networks}, alike={now.alike}"
            new = f"exchange = Exchange({new}, server_model={now.server_model})"
            text = f"{cls.__name__}: {', '.join(flags)} will go with the next version; write {new}"
            warnings.warn(text, FutureWarning, stacklevel=2)

    @property
    def keeps_states(self) -> bool:
        """Whether going back to the best round takes more than :attr:`global_weights`: states of sites or server."""
        return self.exchange.own_networks or self.exchange.tailored or self.server.keeps_parts

    def attach(self, server: Server) -> Strategy:
        """Binds the run, before anything else is called; returns itself.

        Raises:
            Refused: the run has not what this strategy needs.
        """
        self.server = server
        self._take(server.weights)
        return self

    def require_names(self, shared: Sequence[str]) -> None:  # noqa: B027 - most strategies take any network
        """Looks at the names of what sites share before anything is computed.

        Raises:
            Refused: options of this strategy do not fit them.
        """

    def require_sites(self, sites: Sequence[str]) -> None:  # noqa: B027 - most strategies take any number
        """Looks at who trains before anything is computed.

        Raises:
            Refused: they are too few for what this strategy promises.
        """

    def requirements(self) -> dict[str, str]:
        """What every site must confirm before round 0, and in each round that it trains, as ``extra`` of a message.

        Empty asks for nothing. It is asked again because a site may have come back with other data.
        """
        return {}

    @abstractmethod
    def configure(self, round: int) -> dict[str, Envelope]:
        """The message for each site; its tensors stay as they are until the first answer of the next round."""

    def expected(self, site: str) -> Mapping[str, Tensor] | None:
        """Names, shapes and dtypes of a site's answer; ``None`` where it answers with numbers only."""
        return self.global_weights

    @abstractmethod
    def accept(self, round: int, site: str, update: Envelope) -> None:
        """Takes in one checked answer.

        Raises:
            MessageRefused: this answer is not used; what was accepted before it stays.
        """

    def finish(self, round: int) -> None:  # noqa: B027 - a strategy may have nothing to add
        """Makes the accepted answers into what the next round starts from."""

    def refine(self, round: int) -> None:  # noqa: B027 - most servers do not train
        """What the server itself trains once the answers are in."""

    def aggregate(self, round: int, updates: Mapping[str, Envelope]) -> None:
        """Accepts ``updates`` in the order of the sites' names, finishes and refines the round."""
        for site in sorted(updates):
            self.accept(round, site, updates[site])
        self.finish(round)
        self.refine(round)

    def evaluation(self, site: str) -> dict[str, Tensor] | None:
        """The model that a site evaluates; ``None`` is its own network."""
        return None if self.exchange.own_networks and site in self.server.sites else self.global_weights

    def state_dict(self) -> dict[str, Tensor]:
        """What the next round starts from beside :attr:`global_weights`; empty for most."""
        return {}

    def load_state_dict(self, weights: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
        """Goes back to a stored round.

        Args:
            weights: its :attr:`global_weights`.
            state: what :meth:`state_dict` returned then.
        """
        self._take(weights)

    def _take(self, weights: Mapping[str, Tensor]) -> None:
        taken = weights if self.exchange.server_model else {}
        self.global_weights = {name: tensor.detach().cpu().clone() for name, tensor in taken.items()}

    def _message(self, site: str, round: int, kind: Kind, tensors: Mapping[str, Tensor], **extra: str) -> Envelope:
        server, extra = self.server, {**self.requirements(), **extra}
        return Envelope(kind, site, round, server.rounds, server.seed, tensors=dict(tensors), extra=extra)


_FLAGS = ("answer_kind", "exchange_name", "has_model", "one_network", "personal")  # how version 0.1 said it


def _of_flags(flags: Mapping[str, Any], base: Exchange) -> Exchange:
    kinds = {word: kind for kind, word in WORDS.items()}
    answer = flags.get("answer_kind") or kinds.get(flags.get("exchange_name", ""), base.answer)
    own = flags.get("personal", base.own_networks)
    alike = flags.get("one_network", base.alike if own == base.own_networks else not own)
    model = flags.get("has_model", base.server_model)
    return replace(base, answer=answer, own_networks=own, alike=alike, server_model=model)


class Action(str, Enum):
    """What happens to an update beyond the limit."""

    CLIP = "clip"
    SKIP = "skip"


class UpdateGuard:
    """Limits what one site's update does to the mean: the length of its step, and its share.

    The length is ``|update - global| <= limit * |global|``, over all floating-point tensors. The share is that of the
    images which the site says it trains on; the server cannot count them, and a site that says ten million would be
    the mean.

    Args:
        limit: largest ratio of the two L2 norms. An honest round moves weights by a fraction of their norm; 10 leaves
            room for the batch-norm statistics of a network that starts from scratch.
        action: ``clip`` scales the step back to the limit, ``skip`` leaves the update out.
        largest_share: most of the sum of all sites' images that one site counts as, in (0, 1]; below one over the
            number of sites it weighs all alike. ``None``, and 1, weigh by the images as they are said. It is off unless
            it is asked for: FedAvg's weights are its definition, two honest sites may have four and one fifth of the
            images, and a cap that never touched such a run would leave a liar most of the mean.

    Raises:
        Refused: a limit or a share out of its range, or an unknown action.
    """

    def __init__(self, *, limit: float = 10.0, action: str = "clip", largest_share: float | None = None) -> None:
        problems = Problems()
        if not (isinstance(limit, (int, float)) and math.isfinite(limit) and limit > 0):
            problems.add("UpdateGuard#limit", found=repr(limit), expected="a positive number")
        if action not in {known.value for known in Action}:
            problems.add("UpdateGuard#action", found=repr(action), expected="'clip' or 'skip'")
        number = isinstance(largest_share, (int, float)) and not isinstance(largest_share, bool)
        if largest_share is not None and not (number and 0 < largest_share <= 1):
            expected = "a number in (0, 1], or null"
            problems.add("UpdateGuard#largest_share", found=repr(largest_share), expected=expected)
        problems.refuse_if_any()
        self.limit, self.action, self.largest_share = float(limit), Action(action), largest_share

    def counted(self, images: Mapping[str, int]) -> dict[str, int]:
        """How many images each site counts as, so that none has more than ``largest_share`` of their sum.

        Those with too many are brought down together to one number; whoever has fewer keeps its own.

        Args:
            images: site to number of images that it trains on.
        """
        most = 1.0 if self.largest_share is None else self.largest_share
        counts = sorted(images.values(), reverse=True)
        for above in range(len(counts)):
            room = 1 - above * most
            limit = most * sum(counts[above:]) / room if room > 0 else 0.0
            if counts[above] <= limit:  # these are below it, and those above it are brought down to it
                return dict(images) if above == 0 else {site: max(1, min(n, int(limit))) for site, n in images.items()}
        return dict.fromkeys(images, 1)

    def share(
        self, update: Mapping[str, Tensor], reference: Mapping[str, Tensor], reference_norm: float | None = None
    ) -> float:
        """How much of the step from ``reference`` to ``update`` may be taken, in (0, 1].

        Args:
            update: the weights that arrived, finite.
            reference: the global weights.
            reference_norm: ``norm(reference)``, where it is known already.

        Raises:
            MessageRefused: the step is too long and ``action`` is ``skip``.
        """
        base = max(norm(reference) if reference_norm is None else reference_norm, 1e-12)
        allowed = self.limit * base
        # |u - g| <= |u| + |g|: mostly that settles it with one read and no temporary
        if norm(update) + base <= allowed:
            return 1.0
        length = math.sqrt(
            sum(
                float(torch.linalg.vector_norm(update[name] - tensor, dtype=torch.float64)) ** 2
                for name, tensor in reference.items()
                if tensor.is_floating_point()
            )
        )
        if length <= allowed:
            return 1.0
        if self.action == Action.CLIP:
            return allowed / length
        found, expected = f"a step of norm {length:.3g}", f"at most {allowed:.3g}"
        raise MessageRefused([Problem("message -> tensors", found=found, expected=expected)])

    def clipped(self, update: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``update``, its step from ``reference`` shortened to what :meth:`share` allows; integers as they are."""
        share = self.share(update, reference)
        return {name: shortened(reference[name], tensor, share) for name, tensor in update.items()}


def shortened(old: Tensor, new: Tensor, share: float) -> Tensor:
    """``old + share (new - old)`` of ``new``'s type, share in (0, 1]; a whole step is ``new``, and so are integers."""
    return torch.lerp(old.to(new.dtype), new, share) if share < 1 and new.is_floating_point() else new


def norm(tensors: Mapping[str, Tensor]) -> float:
    """L2 norm over all floating-point tensors; infinite where the sum of squares leaves float32."""
    flat = (tensor.reshape(-1) for tensor in tensors.values() if tensor.is_floating_point())
    return math.sqrt(sum(float(torch.dot(values, values)) for values in flat))  # a dot is 2x faster than vector_norm
