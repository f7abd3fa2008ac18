"""``Sharing``, a site's counterpart of a strategy where the site keeps a network of its own (Ditto, FedALA, …)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from monai.networks.utils import get_state_dict

from samfed_monai.core.seeds import derive_seed
from samfed_monai.core.training_state import seed_transforms
from samfed_monai.handlers.rounds import forget_unfinished_run
from samfed_monai.protocol.message import Kind, Message, message_refused

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer


class Sharing(ABC):
    """What a site receives and sends, named in a bundle as ``sharing``; ``null`` there: weights are replaced (FedAvg).

    A round at such a site: :meth:`receive`, the local epoch on the site's own network, :meth:`share`.
    """

    #: SHA-256 of the public set as this site uses it; empty where none is used. The server refuses another.
    public_hash: str = ""

    @abstractmethod
    def receive(self, round: int, rounds: int, kind: Kind, tensors: Mapping[str, Tensor]) -> dict[str, float]:
        """Takes what the server sent, before the local epoch.

        Args:
            round, rounds: which round, from 0, and how many there are.
            kind: what the tensors are.
            tensors: by name; none in a round in which the server has nothing to say.

        Returns:
            Numbers to report, by name.

        Raises:
            MessageRefused: the tensors are not what this site can use.
        """

    @abstractmethod
    def share(self) -> tuple[Kind, dict[str, Tensor]]:
        """What leaves the site after the local epoch."""

    def may_share(self) -> Mapping[Kind, Mapping[str, Tensor]]:
        """What :meth:`share` may have answered: kind to names, shapes and dtypes. Anything else is refused.

        Called after :meth:`share`, for its answer.
        """
        return {}

    def masks_taken(self) -> int:
        """Pixels of all soft masks together that :meth:`receive` takes; a message with more is not inflated.

        0 for a sharing that takes none. It is asked before each message with soft masks, and looks at no private image.
        """
        return 0

    def state_dict(self) -> dict[str, Tensor]:
        """What the next round starts from beside the network, as named tensors; empty for most."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:  # noqa: B027 - see state_dict
        """Puts back what :meth:`state_dict` returned, an empty one included; the network is in place already."""

    def reset(self) -> None:  # noqa: B027 - a sharing that remembers nothing has nothing to forget
        """Forgets what it remembers of the network, whose weights were put in from outside."""


def trained_weights(network: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that are trained, by name, in the network's order."""
    named = ((name.removeprefix("module."), weight) for name, weight in network.named_parameters())
    return {name: weight for name, weight in named if weight.requires_grad and weight.is_floating_point()}


_POSITION = ("epoch", "iteration", "max_epochs", "epoch_length")


class TrainerSharing(Sharing):
    """A sharing of weights that is one of its trainer's handlers, too, so that it sees every step.

    Weights of the server arrive, weights of the same names leave; what the server does not name stays as it is. So the
    allow-list of a network (:func:`allowed_weights`) holds here as anywhere.

    Args:
        network, optimizer: those of the local training.
        seed, site: what the random numbers of additional runs derive from.

    Example::

        "sharing": {"network": "@network", "optimizer": "@optimizer", "seed": "@seed", "site": "@site", …},
        "after#sharing": {"_target_": "samfed_monai.handlers.HandlerGroup", "handlers": ["@sharing"]}
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
        """The server's weights, checked; their names are what :meth:`named` gives.

        Raises:
            MessageRefused: something else than weights of this network.
        """
        if kind != Kind.WEIGHTS or not tensors:
            expected, hint = "the server's weights", "use the strategy that the variant names beside this sharing"
            raise message_refused("message -> kind", Kind(kind).value, expected, hint)
        state = get_state_dict(self.network)
        like = {name: state[name] for name in tensors if name in state}
        Message(Kind.WEIGHTS, "", 0, 1, tensors=dict(tensors)).check(up=False, like=like)
        self._names = tuple(tensors)
        return dict(tensors)

    def put(self, tensors: Mapping[str, Tensor]) -> None:
        """Puts weights in place of the network's of the same names."""
        self.network.load_state_dict(dict(tensors), strict=False)

    def named(self) -> dict[str, Tensor]:
        """Copies of the network's weights whose names the server sent."""
        state = get_state_dict(self.network)
        return {name: state[name].detach().cpu().clone() for name in self._names}

    def trained(self) -> dict[str, nn.Parameter]:
        """Parameters that are trained here and whose names the server sent, in the network's order."""
        known = set(self._names)
        return {name: weight for name, weight in trained_weights(self.network).items() if name in known}

    def run_once_more(self, round: int, what: str, steps: int | None = None) -> dict[str, float]:
        """Runs the trainer beside the local epoch and leaves its position as it was.

        It sees the batches of the local epoch, from the first on: the trainer's ``SeedHandler`` makes a run a function
        of seed, site and round.

        Args:
            round: from 0.
            what: names the run; the random views of a trainer without a ``SeedHandler`` derive from it.
            steps: iterations; ``None`` takes as many as a local epoch has.

        Returns:
            Means of the loss's parts, by name.

        Raises:
            MessageRefused: the bundle did not list this sharing among the trainer's handlers.
        """
        trainer = self._trainer
        if trainer is None:
            group = '{"_target_": "samfed_monai.handlers.HandlerGroup", "handlers": ["@sharing"]}'
            hint = f'list @sharing among the handlers: let "after#sharing" be {group}'
            raise message_refused("train.json -> sharing", "no trainer", "a trainer", hint)
        state = trainer.state
        before = {name: getattr(state, name) for name in _POSITION}
        data = getattr(trainer.data_loader, "dataset", None)
        seed_transforms(data, derive_seed(self.seed, self.site, round, what))
        state.max_epochs = state.epoch + 1
        if steps is not None:  # Ignite takes an iteration within an epoch for a run that goes on
            state.epoch_length, state.iteration = steps, state.epoch * steps
        forget_unfinished_run(trainer)
        try:
            trainer.run()
            return dict(getattr(state, "term_means", None) or {})
        finally:
            for name, value in before.items():
                setattr(state, name, value)
            forget_unfinished_run(trainer)
