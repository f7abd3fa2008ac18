"""What one site's client may send: read from its own network and its own sharing, never from a request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from samfed_monai.federation.envelope import Kind
from samfed_monai.federation.own_parts import personal_patterns
from samfed_monai.networks.key_patterns import network_split

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Allowed:
    """An allow-list of tensors.

    Args:
        like: kind of message to names, shapes and dtypes; a kind that is missing may not leave. Messages without
            tensors (``metrics``) need no entry.
        exact: kinds whose tensors must equal those of ``like``, to the bit.
        learned: names of the network's parameters; the rest of its state is running statistics and counters.
    """

    like: Mapping[Kind, Mapping[str, Tensor]] = field(default_factory=dict)
    exact: frozenset[Kind] = frozenset()
    learned: frozenset[str] = frozenset()


def allowed_weights(network: nn.Module, *, personal: Sequence[str] = ()) -> Allowed:
    """The shared names of a network: those that it declares itself (``key_split()``), without the personal ones.

    Args:
        network: the site's own. One that declares nothing shares its whole state dict; of one that does, frozen and
            personal names never leave.
        personal: patterns of names that never leave (:func:`network_split`).

    Raises:
        Refused: a pattern that matches nothing.
    """
    from monai.networks.utils import get_state_dict

    state = get_state_dict(network)
    shared = {name: state[name] for name in network_split(network, personal).shared}
    learned = frozenset(name.removeprefix("module.") for name, _ in network.named_parameters())
    return Allowed({Kind.WEIGHTS: shared}, learned=learned)


def allowed_of(client: Any, *, personal: Sequence[str] | None = None) -> Allowed:
    """What a :class:`SamFedAlgo` may send: its sharing's tensors where it keeps its network, else the network's.

    A request does not widen it: a site with a sharing does not send its network because a server asks it to.

    Args:
        client: an initialized client; one that only evaluates may send no tensors.
        personal: patterns of names that never leave (:func:`network_split`); ``None`` takes those of its bundle.
    """
    if getattr(client, "trainer", None) is None:
        return Allowed()
    network, own = client.trainer.network, getattr(client, "own", None)
    if personal is None:
        personal = personal_patterns(getattr(client.train_workflow, "parser", None))
    weights = allowed_weights(network, personal=personal)
    if own is None:
        return weights
    like = dict(own.sharing.may_share())
    if Kind.WEIGHTS in like:
        like[Kind.WEIGHTS] = weights.like[Kind.WEIGHTS]
    return Allowed(like, exact=frozenset({Kind.SOFT_MASKS}) & like.keys(), learned=weights.learned)
