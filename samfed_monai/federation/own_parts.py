"""A site that keeps part of its network: shared names are replaced, personal ones stay, frozen ones never move."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from monai.fl.utils.constants import WeightType
from monai.fl.utils.exchange_object import ExchangeObject
from monai.networks.utils import get_state_dict

from samfed_monai.core.errors import Problem, Refused
from samfed_monai.federation.exchange import HEADER
from samfed_monai.federation.own_network import marked, undone
from samfed_monai.networks.key_patterns import PERSONAL, KeySplit, network_split

if TYPE_CHECKING:
    from torch import Tensor, nn

    from samfed_monai.federation.call import Call


class OwnParts:
    """What of one site's network is whose.

    Without personal and frozen names it changes nothing: messages hold the whole network.

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
        """What of a network's state, or of an answer with it, may travel."""
        stay = {*self.split.personal, *self.split.frozen}
        return {name: tensor for name, tensor in state.items() if name not in stay}

    def personal(self) -> dict[str, Tensor]:
        """What stays here; the network's own memory."""
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
        """The personal values, under names that :func:`.own_network.split_state` knows."""
        return marked(self.personal())

    @contextmanager
    def undone_if_it_fails(self, call: Call) -> Iterator[None]:
        """Leaves the personal values as they were before a block that fails; shared ones are sent anew."""
        with undone(self.network, self.split.personal):
            yield


def own_parts(network: nn.Module, workflow: Any, *, has_sharing: bool = False) -> OwnParts:
    """Those of a bundle's network, by its own declaration and by ``train.json -> personal``.

    Args:
        network: as :class:`OwnParts` takes it.
        workflow: the bundle's, whose configuration may have ``personal``.
        has_sharing: whether the bundle has a ``sharing``, with which a site keeps its whole network.

    Raises:
        Refused: patterns that :func:`network_split` refuses, or patterns beside a ``sharing``.
    """
    patterns = personal_patterns(getattr(workflow, "parser", None))
    if patterns and has_sharing:
        expected, mend = "none: with a sharing a site keeps its whole network", "leave personal empty"
        raise Refused([Problem(PERSONAL, found=repr(patterns), expected=expected, mend=mend)])
    return OwnParts(network, network_split(network, patterns))


def personal_patterns(parser: Any) -> Any:
    """``train.json -> personal``; none where a configuration does not have it."""
    return (parser.get_parsed_content("personal") or ()) if parser is not None and "personal" in parser else ()
