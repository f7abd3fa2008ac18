"""``Strategy``, the base class of aggregators, and ``ClientAlgorithm``, its counterpart at a site.

A strategy decides what the server sends and how it uses the sites' updates (Ditto, FedALA, … need both).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from monai.networks.utils import get_state_dict

from samfed_monai.core.errors import refused
from samfed_monai.core.seeds import derive_seed
from samfed_monai.core.training_state import seed_transforms
from samfed_monai.handlers.rounds import forget_unfinished_run
from samfed_monai.protocol.message import Kind, Message, message_refused
from samfed_monai.protocol.statistics import StatisticKind

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from samfed_monai.protocol.guard import UpdateGuard


@dataclass(frozen=True)
class Server:
    """The server's side of a run.

    Args:
        sites: names of the sites that train.
        rounds: number of rounds.
        seed: the run's seed.
        weights: the server's network before round 0, names to tensors.
        guard: limits the effect of one site's update on the mean; ``None`` accepts every finite one.
            :meth:`Strategy.take` shortens steps before :meth:`Strategy.accept` gets them.
        algorithm: builds the server's own network with its public set: the bundle's ``client_algorithm``, as at a site,
            with the server's architecture. Called only by strategies that train at the server.
        networks: site to a builder of that site's network, without pretrained weights; for strategies that need one.
        warm_start: trains given weights on the public set, as at the start of a run, and returns them; for a strategy
            with :attr:`Strategy.rounds_before_warm_start`.
        has_personal_part: whether part of the network is personal: ``weights`` are then its shared names only, and
            restoring a stored model takes the sites' states.
    """

    sites: Sequence[str]
    rounds: int
    seed: int = 0
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    guard: UpdateGuard | None = None
    algorithm: Callable[[], Any] | None = None
    networks: Mapping[str, Callable[[], nn.Module]] = field(default_factory=dict)
    warm_start: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] | None = None
    has_personal_part: bool = False

    def make_client_algorithm(self, variant: str) -> Any:
        """Builds the server's own network with its public set: the client algorithm of the variant.

        Args:
            variant: one that has a client algorithm, for the message.

        Raises:
            Refused: the bundle has no ``client_algorithm``.
        """
        if self.algorithm is None:
            found, expected = "no `client_algorithm` in the bundle", "a PublicMaskAlgorithm"
            raise refused("strategy", found, expected, f"use a variant with a client algorithm, like {variant}")
        return self.algorithm()


WORDS = {Kind.WEIGHTS: "weights", Kind.SOFT_MASKS: "predictions", Kind.PROTOTYPES: "prototypes", Kind.METRICS: "none"}
"""Kind of the sites' replies to its name in ``results.json`` and in methods' declarations."""


@dataclass(frozen=True)
class Exchange:
    """Data that the rounds of a strategy exchange, and the models that they lead to.

    Args:
        answer: required kind of the sites' replies.
        own_networks: whether each site keeps a network of its own, which is then evaluated there.
        alike: whether all sites must have the same network, because their weights are combined.
        server_model: whether the server has a model; without one :attr:`Strategy.global_weights` stays empty.
        tailored: whether the server makes each site a model of its own.
        mean: whether the mean of the replies' weights can replace them, passed once to :meth:`Strategy.accept` as a
            reply of all images. Central differential privacy and secure aggregation provide only that. A class that
            overrides :meth:`Strategy.accept` or :meth:`Strategy.finish` must set it again, or it is False.
        reads_term_means: whether the server reads means of loss terms, which no differential privacy protects.

    Example::

        exchange = Exchange(Kind.PROTOTYPES, own_networks=True, alike=False, server_model=False)
    """

    answer: Kind = Kind.WEIGHTS
    own_networks: bool = False
    alike: bool = True
    server_model: bool = True
    tailored: bool = False
    mean: bool = False
    reads_term_means: bool = False

    @property
    def word(self) -> str:
        """Name of the exchanged data in ``results.json``."""
        return WORDS[self.answer]


def require_least(sites: Sequence[str], least: int, what_for: str, hint: str) -> None:
    """Refuses fewer sites than a strategy needs.

    Args:
        sites: those that train.
        least: minimum number of sites.
        what_for: purpose, for the message.
        hint: how to fix it.

    Raises:
        Refused: fewer sites.
    """
    if len(sites) < least:
        raise refused("strategy", f"{len(sites)}", f"{least} sites or more, for {what_for}", hint)


class Strategy(ABC):
    """Server side of a round: :meth:`configure`, then :meth:`take` for each reply, :meth:`finish`, :meth:`refine`.

    The constructor takes options, as a bundle's JSON names them (``strategy``); :meth:`attach` binds the run. Replies
    are processed one by one so that only one of them has to be in memory: :meth:`take`, the same for all strategies,
    shortens a step that is too long and passes the reply to :meth:`accept`, which a strategy implements. A strategy
    does not evaluate, store or send anything.
    """

    #: The server's model, which is stored, and evaluated at unseen sites; names to tensors on the CPU.
    #: Empty if the server has none.
    global_weights: dict[str, Tensor]

    #: Data that a round exchanges; set by the class, or by the instance if it depends on an option.
    exchange: Exchange = Exchange()

    #: The image-derived statistic that sites send to it; ``None`` for none.
    statistic: StatisticKind | None = None

    #: Number of rounds before the warm start, which the strategy then calls itself (:attr:`Server.warm_start`); with 0
    #: the first round starts from warm weights.
    rounds_before_warm_start: int = 0

    server: Server

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if cls.exchange.mean and "exchange" not in vars(cls) and {"accept", "finish"} & vars(cls).keys():
            cls.exchange = replace(cls.exchange, mean=False)

    @property
    def keeps_states(self) -> bool:
        """Whether restoring the best round takes more than :attr:`global_weights`: states of sites or server."""
        return self.exchange.own_networks or self.exchange.tailored or self.server.has_personal_part

    def attach(self, server: Server) -> Strategy:
        """Binds the run; called before any other method; returns itself.

        Raises:
            Refused: the run lacks something that this strategy needs.
        """
        self.server = server
        self.load_state_dict(server.weights, {})
        return self

    def require_names(self, shared: Sequence[str]) -> None:  # noqa: B027 - most strategies take any network
        """Checks the names of the sites' shared weights before anything is computed.

        Raises:
            Refused: options of this strategy do not fit them.
        """

    def require_terms(self, names: Sequence[str]) -> None:  # noqa: B027 - most strategies read no term
        """Checks the names of the terms that sites train with, before anything is computed.

        Raises:
            Refused: options of this strategy name none of them.
        """

    def require_sites(self, sites: Sequence[str]) -> None:  # noqa: B027 - most strategies take any number
        """Checks the sites that train, before anything is computed.

        Raises:
            Refused: they are too few for the guarantees of this strategy.
        """

    def require_rounds(self, rounds: int) -> None:  # noqa: B027 - most strategies take any number
        """Checks the number of rounds, before anything is computed.

        Raises:
            Refused: it is too small for options of this strategy.
        """

    def require_networks(self, networks: Mapping[str, nn.Module]) -> None:  # noqa: B027 - most take any
        """Checks each site's network, by site and without trained weights, before anything is computed.

        Raises:
            Refused: this strategy cannot use one of them, or not for so many sites.
        """

    def requirements(self) -> dict[str, str]:
        """Words that every site must confirm before round 0 and in each round that it trains; empty by default.

        They are part of a message's ``extra``, and sent again because a site may have come back with other data.
        """
        return {}

    @abstractmethod
    def configure(self, round: int) -> dict[str, Message]:
        """Returns the message for each site; its tensors stay unchanged until the first reply of the next round."""

    def expected(self, site: str) -> Mapping[str, Tensor] | None:
        """Names, shapes and dtypes of a site's reply; ``None`` if it has only numbers."""
        return self.global_weights

    def reference(self, site: str) -> Mapping[str, Tensor] | None:
        """Weights that the step of a site's reply is measured from; ``None`` if the reply is not such a step."""
        if self.exchange.answer is not Kind.WEIGHTS or not self.exchange.alike:
            return None
        return self.evaluation(site) if self.exchange.tailored else self.global_weights

    def take(self, round: int, site: str, update: Message) -> None:
        """Shortens the step of one checked reply with :attr:`Server.guard`, then accepts it.

        Raises:
            MessageRefused: this reply is not used; earlier ones stay accepted.
        """
        if self.server.guard and (reference := self.reference(site)):
            update = self.server.guard.limited(update, reference)
        self.accept(round, site, update)

    @abstractmethod
    def accept(self, round: int, site: str, update: Message) -> None:
        """Processes one checked reply, whose step is no longer than the run allows.

        Raises:
            MessageRefused: this reply is not used; earlier ones stay accepted.
        """

    def finish(self, round: int) -> None:  # noqa: B027 - a strategy may have nothing to add
        """Computes the next round's start from the accepted replies."""

    def refine(self, round: int) -> None:  # noqa: B027 - most servers do not train
        """Runs the server's own training, after all replies."""

    def aggregate(self, round: int, updates: Mapping[str, Message]) -> None:
        """Processes a round's replies like the controller, to try a strategy without a federation.

        Args:
            round: number of the round, after its :meth:`configure`.
            updates: site to checked reply; they are processed in the order of names.
        """
        for site in sorted(updates):
            self.take(round, site, updates[site])
        self.finish(round)
        self.refine(round)

    def evaluation(self, site: str) -> dict[str, Tensor] | None:
        """The model that a site evaluates; ``None`` is its own network."""
        return None if self.exchange.own_networks and site in self.server.sites else self.global_weights

    def state_dict(self) -> dict[str, Tensor]:
        """State for the next round beside :attr:`global_weights`; empty for most strategies."""
        return {}

    def load_state_dict(self, weights: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
        """Starts a run, or restores a stored round.

        Args:
            weights: :attr:`global_weights` of the round; the server's own at the start.
            state: :meth:`state_dict` of the round; empty at the start.
        """
        weights_of_model = weights if self.exchange.server_model else {}
        # A stored file has its names in another order, which would change the last bits of norms.
        position = {name: number for number, name in enumerate(self.server.weights)}
        names = sorted(weights_of_model, key=lambda name: position.get(name, len(position)))
        self.global_weights = {name: weights_of_model[name].detach().cpu().clone() for name in names}

    def _pack_models(self, models: Mapping[str, Mapping[str, Tensor]], prefix: str = "") -> dict[str, Tensor]:
        """Models of sites as part of :meth:`state_dict`, under ``<prefix><index of the site>.<name>``."""
        indices = {site: index for index, site in enumerate(self.server.sites)}
        return {f"{prefix}{indices[site]}.{name}": t for site, model in models.items() for name, t in model.items()}

    def _unpack_models(self, state: Mapping[str, Tensor], prefix: str = "") -> dict[str, dict[str, Tensor]]:
        """Models that :meth:`_pack_models` packed, with the names of :attr:`global_weights`."""
        models = {}
        for index, site in enumerate(self.server.sites):
            keys = {name: f"{prefix}{index}.{name}" for name in self.global_weights}
            if model := {name: state[key] for name, key in keys.items() if key in state}:
                models[site] = model
        return models

    def message(self, site: str, round: int, kind: Kind, tensors: Mapping[str, Tensor], **extra: str) -> Message:
        server, extra = self.server, {**self.requirements(), **extra}
        return Message(kind, site, round, server.rounds, server.seed, tensors=dict(tensors), extra=extra)

    def mean_update(self, round: int, tensors: Mapping[str, Tensor], n: int) -> Message:
        """The mean of all replies as one update, of ``n`` images, for a strategy that needs no more."""
        return replace(self.message("mean", round, Kind.WEIGHTS, tensors), n=n, extra={})


class ClientAlgorithm(ABC):
    """Data that a site receives and sends, ``client_algorithm`` in a bundle; ``null`` replaces weights (FedAvg).

    A round at such a site: :meth:`receive`, the local epoch on the site's own network, :meth:`share`.
    """

    #: SHA-256 of the public set as this site uses it, which must be the server's; empty if none is used.
    public_hash: str = ""

    @abstractmethod
    def receive(self, round: int, rounds: int, kind: Kind, tensors: Mapping[str, Tensor]) -> dict[str, float]:
        """Processes the server's tensors before the local epoch.

        Args:
            round, rounds: the round, from 0, and the number of rounds.
            kind: kind of the tensors.
            tensors: by name; empty in a round in which the server has none to send.

        Returns:
            Numbers to report, by name.

        Raises:
            MessageRefused: this site cannot use the tensors.
        """

    @abstractmethod
    def share(self) -> tuple[Kind, dict[str, Tensor]]:
        """Returns the tensors to send after the local epoch, and their kind."""

    def may_share(self) -> Mapping[Kind, Mapping[str, Tensor]]:
        """Allowed results of :meth:`share`: kind to names, shapes and dtypes. Anything else is refused.

        Called after :meth:`share`, to check its result.
        """
        return {}

    def max_mask_pixels(self) -> int:
        """Maximum number of pixels of all soft masks together for :meth:`receive`; a larger message is not inflated.

        0 without soft masks. Called before each message with soft masks; it reads no private image.
        """
        return 0

    def state_dict(self) -> dict[str, Tensor]:
        """State for the next round beside the network, as named tensors; empty for most client algorithms."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:  # noqa: B027 - see state_dict
        """Restores the state of :meth:`state_dict`, also an empty one; the network's weights are already loaded."""

    def reset(self) -> None:  # noqa: B027 - a client algorithm that remembers nothing has nothing to forget
        """Drops state about the network after its weights were replaced from outside."""


_POSITION = ("epoch", "iteration", "max_epochs", "epoch_length")


def trained_weights(network: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that are trained, by name, in the network's order."""
    parameters = ((name.removeprefix("module."), weight) for name, weight in network.named_parameters())
    return {name: weight for name, weight in parameters if weight.requires_grad and weight.is_floating_point()}


class TrainerAlgorithm(ClientAlgorithm):
    """A client algorithm of weights that is also one of its trainer's handlers, so that it sees every step.

    It receives weights of the server and sends weights of the same names; others stay unchanged. So the allow-list of a
    network (:func:`allowed_weights`) applies here, too.

    Args:
        network, optimizer: those of the local training.
        seed, site: the random numbers of additional runs derive from them.

    Example::

        "client_algorithm": {"network": "@network", "optimizer": "@optimizer", "seed": "@seed", "site": "@site", …},
        "after#client_algorithm": {"_target_": "samfed_monai.handlers.HandlerGroup", "handlers": ["@client_algorithm"]}
    """

    def __init__(self, *, network: nn.Module, optimizer: Optimizer, seed: int = 0, site: str = "") -> None:
        self.network, self.optimizer, self.seed, self.site = network, optimizer, seed, site
        self._trainer: Any = None
        self._names: tuple[str, ...] = ()

    def attach(self, engine: Any) -> None:
        """Binds to the trainer of the local epoch."""
        self._trainer = engine

    def receive(self, round: int, rounds: int, kind: Kind, tensors: Mapping[str, Tensor]) -> dict[str, float]:
        self.put(self.taken(kind, tensors))
        return {}

    def share(self) -> tuple[Kind, dict[str, Tensor]]:
        return Kind.WEIGHTS, self.named()

    def may_share(self) -> Mapping[Kind, Mapping[str, Tensor]]:
        return {Kind.WEIGHTS: get_state_dict(self.network)}

    def taken(self, kind: Kind, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Checks and returns the server's weights; :meth:`named` then has weights of the same names.

        Raises:
            MessageRefused: anything but weights of this network.
        """
        if kind != Kind.WEIGHTS or not tensors:
            expected, hint = "the server's weights", "use the strategy and the client algorithm of the same variant"
            raise message_refused("message -> kind", Kind(kind).value, expected, hint)
        state = get_state_dict(self.network)
        like = {name: state[name] for name in tensors if name in state}
        Message(Kind.WEIGHTS, "", 0, 1, tensors=dict(tensors)).check(up=False, like=like)
        self._names = tuple(tensors)
        return dict(tensors)

    def put(self, tensors: Mapping[str, Tensor]) -> None:
        """Replaces the network's weights of the same names."""
        self.network.load_state_dict(dict(tensors), strict=False)

    def named(self) -> dict[str, Tensor]:
        """Copies of the network's weights whose names the server sent."""
        state = get_state_dict(self.network)
        return {name: state[name].detach().cpu().clone() for name in self._names}

    def trained(self) -> dict[str, nn.Parameter]:
        """Parameters that are trained here and whose names the server sent, in the network's order."""
        known = set(self._names)
        return {name: weight for name, weight in trained_weights(self.network).items() if name in known}

    def run_extra(self, round: int, what: str, steps: int | None = None) -> dict[str, float]:
        """Runs the trainer once beside the local epoch and restores its position.

        It gets the batches of the local epoch, from the first on: the trainer's ``SeedHandler`` makes a run a function
        of seed, site and round.

        Args:
            round: from 0.
            what: name of the run; the random views of a trainer without a ``SeedHandler`` derive from it.
            steps: iterations; ``None`` takes as many as a local epoch has.

        Returns:
            Means of the loss's parts, by name.

        Raises:
            MessageRefused: the bundle did not list this client algorithm among the trainer's handlers.
        """
        trainer = self._trainer
        if trainer is None:
            group = '{"_target_": "samfed_monai.handlers.HandlerGroup", "handlers": ["@client_algorithm"]}'
            hint = f'add @client_algorithm to the handlers: set "after#client_algorithm" to {group}'
            raise message_refused("train.json -> client_algorithm", "no trainer", "a trainer", hint)
        state = trainer.state
        before = {name: getattr(state, name) for name in _POSITION}
        seed_transforms(getattr(trainer.data_loader, "dataset", None), derive_seed(self.seed, self.site, round, what))
        state.max_epochs = state.epoch + 1
        if steps is not None:  # Ignite treats an iteration within an epoch as a run to resume
            state.epoch_length, state.iteration = steps, state.epoch * steps
        forget_unfinished_run(trainer)
        try:
            trainer.run()
            return dict(getattr(state, "term_means", None) or {})
        finally:
            for name, value in before.items():
                setattr(state, name, value)
            forget_unfinished_run(trainer)
