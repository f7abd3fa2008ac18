"""Sites that keep a network of their own, whole or in part: what they receive, send, store and restore."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from monai.fl.utils.constants import WeightType
from monai.fl.utils.exchange_object import ExchangeObject
from monai.networks.utils import get_state_dict

from samfed_monai.config.parse import parsed
from samfed_monai.core.errors import Problem, Refused
from samfed_monai.federation.exchange_object import HEADER, Call
from samfed_monai.networks.key_patterns import PERSONAL, KeySplit, network_split
from samfed_monai.protocol.message import Kind, MessageRefused

if TYPE_CHECKING:
    from monai.engines import SupervisedTrainer
    from torch import Tensor, nn

    from samfed_monai.protocol.sharing import Sharing


_PREFIX, _SHARING = "network.", "sharing."


class OwnNetwork:
    """A trainer's network where the bundle has a ``sharing``: training continues from its own weights.

    ``purpose`` of a call says what its tensors are for: ``distil`` from them, or ``keep`` the network as it is. With
    ``replace``, the default, weights are replaced as in MONAI FL, and this class is not used.

    Args:
        trainer: whose network it is.
        sharing: the bundle's.
        frozen: names of weights that are not trained; they are the same everywhere, and no state holds them.
    """

    def __init__(self, trainer: SupervisedTrainer, sharing: Sharing, frozen: Sequence[str] = ()) -> None:
        self.trainer, self.sharing, self._frozen = trainer, sharing, frozenset(frozen)

    def receive(self, data: ExchangeObject, call: Call) -> dict[str, float]:
        """Has the sharing learn from a message with purpose ``distil``; returns its finite numbers."""
        if call.purpose != "distil":
            return {}
        kind = Kind(data.get(HEADER, {}).get("kind", Kind.METRICS))
        means = self.sharing.receive(
            call.round or 0, 1 if call.rounds is None else call.rounds, kind, dict(data.weights or {})
        )
        return {name: value for name, value in means.items() if math.isfinite(value)}

    def share(self) -> tuple[Kind, ExchangeObject]:
        """What leaves the site after the local epoch, and what its tensors are."""
        kind, tensors = self.sharing.share()
        return kind, ExchangeObject(weights=tensors or None)

    def in_place_of(self, data: ExchangeObject) -> ExchangeObject:
        """The message ``data`` with this network's weights as its tensors, for MONAI FL to load."""
        own = ExchangeObject(weights=self.weights(), weight_type=WeightType.WEIGHTS)
        own[HEADER] = data.get(HEADER, {})
        return own

    def state_dict(self) -> dict[str, Tensor]:
        """The network's weights and its sharing's state, each with a prefix."""
        kept = {_SHARING + name: tensor for name, tensor in self.sharing.state_dict().items()}
        return {**prefixed(self.weights()), **kept}

    def take_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Gives the sharing its part of a client's state; returns the rest."""
        own = {name[len(_SHARING) :]: tensor for name, tensor in state.items() if name.startswith(_SHARING)}
        self.sharing.load_state_dict(own)
        return {name: tensor for name, tensor in state.items() if not name.startswith(_SHARING)}

    def weights(self) -> dict[str, Tensor]:
        """The network's tensors that are not frozen; not copied."""
        state = get_state_dict(self.trainer.network)
        return {name: tensor for name, tensor in state.items() if name not in self._frozen}

    @contextmanager
    def restored_on_error(self, call: Call) -> Iterator[None]:
        """Restores the network and its sharing when the block raises: a network that stays here would keep a NaN."""
        kept = {name: tensor.detach().clone() for name, tensor in self.sharing.state_dict().items()}
        try:
            with restore_on_error(self.trainer.network, self.weights() if call.keeps_network else ()):
                yield
        except BaseException:
            self.sharing.reset()
            self.sharing.load_state_dict(kept)
            raise


@contextmanager
def restore_on_error(network: nn.Module, names: Iterable[str]) -> Iterator[None]:
    """Restores ``names`` of a network's state when the block raises."""
    state = network.state_dict()
    before = {name: state[name].detach().clone() for name in names}
    try:
        yield
    except BaseException:
        if before:
            network.load_state_dict(before, strict=False)
        raise


def own_network(trainer: SupervisedTrainer | None, workflow: Any, frozen: Sequence[str] = ()) -> OwnNetwork | None:
    """The :class:`OwnNetwork` of a bundle with a ``sharing``; ``None`` without one, or without a trainer.

    Args:
        trainer: the bundle's.
        workflow: the bundle's, whose configuration has the ``sharing``.
        frozen: as :class:`OwnNetwork` takes them.
    """
    sharing = None if trainer is None else parsed(getattr(workflow, "parser", None), "sharing")
    return None if trainer is None or sharing is None else OwnNetwork(trainer, sharing, frozen)


def prefixed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``weights`` with the prefix by which :func:`split_state` finds them in a client's state."""
    return {_PREFIX + name: tensor for name, tensor in weights.items()}


def split_state(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights of a site's own network (empty without one), and the rest of a client's state."""
    own = {name[len(_PREFIX) :]: tensor for name, tensor in state.items() if name.startswith(_PREFIX)}
    return own, {name: tensor for name, tensor in state.items() if not name.startswith(_PREFIX)}


def require_same_public_set(wanted: str | None, own: str) -> None:
    """Refuses a public set that is not the server's.

    Args:
        wanted: hash of the server's; ``None`` and an empty one ask for nothing.
        own: hash of this site's; empty where it has none.

    Raises:
        MessageRefused: the two differ.
    """
    if wanted and wanted != own:
        found, expected = f"a public set with hash {own[:12] or 'none'}", f"that of the server, {wanted[:12]}"
        hint = "give both the same data list, in the same order, with the same masks and image_size"
        raise MessageRefused([Problem("public set", found=found, expected=expected, hint=hint)])


class PersonalParts:
    """Which part of one site's network is shared and which is personal.

    Without personal and frozen names messages hold the whole network.

    Args:
        network: the one that the site trains; at a site that only evaluates, the one that it evaluates.
        split: of its names.
    """

    def __init__(self, network: nn.Module, split: KeySplit) -> None:
        self.network, self.split = network, split

    def __bool__(self) -> bool:
        """Whether anything stays at the site."""
        return bool(self.split.personal)

    def shared(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The part of a network's state, or of an answer, that may be sent."""
        stay = {*self.split.personal, *self.split.frozen}
        return {name: tensor for name, tensor in state.items() if name not in stay}

    def personal(self) -> dict[str, Tensor]:
        """The tensors that stay here; not copied."""
        state = get_state_dict(self.network)
        return {name: state[name] for name in self.split.personal}

    def with_message(self, data: ExchangeObject) -> ExchangeObject:
        """The message ``data`` with the personal values beside its shared ones: the site's own model."""
        if not self:
            return data
        weights = {**dict(data.weights or {}), **self.personal()}
        whole = ExchangeObject(weights=weights, weight_type=WeightType.WEIGHTS)
        whole[HEADER] = data.get(HEADER, {})
        return whole

    def state_dict(self) -> dict[str, Tensor]:
        """The personal values, with the prefix of :func:`split_state`."""
        return prefixed(self.personal())

    @contextmanager
    def restored_on_error(self, call: Call) -> Iterator[None]:
        """Restores the personal values when the block raises; shared ones are sent again in the next round."""
        with restore_on_error(self.network, self.split.personal):
            yield


def personal_parts(network: nn.Module, workflow: Any, *, has_sharing: bool = False) -> PersonalParts:
    """The parts of a bundle's network, by its own declaration and by ``train.json -> personal``.

    Args:
        network: as :class:`PersonalParts` takes it.
        workflow: the bundle's, whose configuration may have ``personal``.
        has_sharing: whether the bundle has a ``sharing``, with which a site keeps its whole network.

    Raises:
        Refused: patterns that :func:`network_split` refuses, or patterns beside a ``sharing``.
    """
    patterns = parsed(getattr(workflow, "parser", None), "personal") or ()
    if patterns and has_sharing:
        expected, hint = "none: with a sharing a site keeps its whole network", "leave personal empty"
        raise Refused([Problem(PERSONAL, found=repr(patterns), expected=expected, hint=hint)])
    return PersonalParts(network, network_split(network, patterns))
