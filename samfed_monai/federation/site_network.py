"""A network's weights by who keeps them: before round 0 (:class:`Start`), and at a site (:class:`SiteNetwork`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from monai.fl.utils.constants import WeightType
from monai.fl.utils.exchange_object import ExchangeObject
from monai.networks.utils import get_state_dict

from samfed_monai.config.parse import parsed
from samfed_monai.core.errors import Refused, refused
from samfed_monai.core.seeds import derive_seed
from samfed_monai.core.training_state import own_random_state
from samfed_monai.data.datalist import SERVER
from samfed_monai.federation.exchange_object import HEADER, Call
from samfed_monai.networks.key_patterns import PERSONAL, KeySplit, network_split
from samfed_monai.protocol.message import Kind

if TYPE_CHECKING:
    from torch import Tensor, nn

    from samfed_monai.protocol.strategy import ClientAlgorithm


@dataclass(frozen=True)
class Start:
    """Initial weights of one network, before round 0.

    Args:
        whole: every tensor.
        split: of the tensors' names.
    """

    whole: Mapping[str, Tensor]
    split: KeySplit

    @classmethod
    def of(
        cls, build: Callable[[], nn.Module], warm: Mapping[str, Tensor], *, personal: Sequence[str], seed: int
    ) -> Start:
        """Builds a network with the weights of a warm start.

        Other tensors keep their initial values of ``seed``: frozen weights, which come from a checkpoint, and experts,
        which add nothing before they are trained. All sites get the same.

        Args:
            build: builds the network.
            warm: of a warm start.
            personal: ``train.json -> personal``.
            seed: the run's seed.

        Raises:
            Refused: patterns that :func:`network_split` refuses; a warm start of another network, or one that trained
                tensors that are frozen here.
        """
        with own_random_state(derive_seed(seed, SERVER, "start")):
            network = build()
        split = network_split(network, personal)
        state = {name: tensor.detach().cpu() for name, tensor in network.state_dict().items()}
        unknown = sorted(name for name in warm if name not in state or warm[name].shape != state[name].shape)
        if unknown:
            raise _refusal(f"{len(unknown)} tensors of another network, first {unknown[0]}")
        changed = [name for name in split.frozen if name in warm and not warm[name].equal(state[name])]
        if changed:
            raise _refusal(f"{len(changed)} trained tensors that are frozen at the sites, first {changed[0]}")
        return cls({name: warm.get(name, state[name]) for name in state}, split)

    @property
    def shared(self) -> dict[str, Tensor]:
        """Weights that are aggregated."""
        return {name: self.whole[name] for name in self.split.shared}

    @property
    def personal(self) -> dict[str, Tensor]:
        """Weights that stay at a site whose other weights are aggregated."""
        return {name: self.whole[name] for name in self.split.personal}

    @property
    def trained(self) -> dict[str, Tensor]:
        """Weights of a site that keeps its whole network: all except frozen ones."""
        frozen = set(self.split.frozen)
        return {name: tensor for name, tensor in self.whole.items() if name not in frozen}


def _refusal(found: str) -> Refused:
    expected = "a warm start of the run's network that trains no tensor frozen at the sites"
    hint = "use the same rank and decoder in warm_start and network_def, or set warm_start_steps to 0"
    return refused("train.json -> warm_start", found=found, expected=expected, hint=hint)


_PREFIX, _ALGORITHM = "network.", "algorithm."


class SiteNetwork:
    """A site's network with its shared, personal and frozen names, and its ``client_algorithm``.

    With a ``client_algorithm``, the ``purpose`` of a call is to ``distil`` from its tensors or to ``keep`` the network.
    With ``replace``, the default, shared weights are replaced as in MONAI FL.

    Args:
        network: the network that the site trains, or evaluates if it does not train.
        split: of its names. Frozen weights are the same everywhere, and no state contains them.
        algorithm: the bundle's, with which training continues from the site's own weights; ``None`` if it has none.
    """

    def __init__(self, network: nn.Module, split: KeySplit, algorithm: ClientAlgorithm | None = None) -> None:
        self.network, self.split, self.algorithm = network, split, algorithm

    @classmethod
    def of(cls, network: nn.Module, parser: Any, *, trains: bool) -> SiteNetwork:
        """Reads it from the network's own declaration and from ``personal`` and ``client_algorithm`` of ``train.json``.

        Args:
            network: of the trainer, or of the evaluator of a site that does not train.
            parser: of the bundle's workflow.
            trains: whether there is a trainer; only then the ``client_algorithm`` is built.

        Raises:
            Refused: patterns that :func:`network_split` refuses, or patterns together with a ``client_algorithm``.
        """
        patterns = parsed(parser, "personal") or ()
        if patterns and parser.get("client_algorithm") is not None:
            expected, hint = "no patterns: a client algorithm keeps its whole network", "leave personal empty"
            raise refused(PERSONAL, repr(patterns), expected, hint)
        return cls(network, network_split(network, patterns), parsed(parser, "client_algorithm") if trains else None)

    def shared(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the part of a network's state, or of a reply, that may be sent."""
        unsent = {*self.split.personal, *self.split.frozen}
        return {name: tensor for name, tensor in state.items() if name not in unsent}

    def local_part(self, *, whole: bool) -> dict[str, Tensor]:
        """Returns the tensors that stay here, uncopied: the personal ones, or the ``whole`` network but frozen ones."""
        state = get_state_dict(self.network)
        names = [name for name in state if name not in self.split.frozen] if whole else self.split.personal
        return {name: state[name] for name in names}

    def receive(self, data: ExchangeObject, call: Call) -> dict[str, float]:
        """Lets the client algorithm learn from a message with purpose ``distil``; returns its finite metrics."""
        if call.purpose != "distil" or self.algorithm is None:
            return {}
        kind = Kind(data.get(HEADER, {}).get("kind", Kind.METRICS))
        rounds = 1 if call.rounds is None else call.rounds
        means = self.algorithm.receive(call.round or 0, rounds, kind, dict(data.weights or {}))
        return {name: value for name, value in means.items() if math.isfinite(value)}

    def with_local_part(self, data: ExchangeObject, *, whole: bool) -> ExchangeObject:
        """Returns the site's own model for MONAI FL: ``data`` plus the personal tensors, or the ``whole`` network."""
        if not (whole or self.split.personal):
            return data
        weights = {**({} if whole else dict(data.weights or {})), **self.local_part(whole=whole)}
        model = ExchangeObject(weights=weights, weight_type=WeightType.WEIGHTS)
        model[HEADER] = data.get(HEADER, {})
        return model

    def state_dict(self) -> dict[str, Tensor]:
        """Weights that stay here and the client algorithm's state, each with a prefix (:func:`split_state`)."""
        weights = {_PREFIX + name: tensor for name, tensor in self.local_part(whole=self.algorithm is not None).items()}
        state = self.algorithm.state_dict() if self.algorithm is not None else {}
        return {**weights, **{_ALGORITHM + name: tensor for name, tensor in state.items()}}

    def load_algorithm(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Loads the client algorithm's part of a client's state; returns the rest."""
        if self.algorithm is not None:
            self.algorithm.load_state_dict(_without_prefix(state, _ALGORITHM))
        return {name: tensor for name, tensor in state.items() if not name.startswith(_ALGORITHM)}

    @contextmanager
    def restored_on_error(self, call: Call) -> Iterator[None]:
        """Restores what stays here if the block raises, so that no NaN remains; shared weights are sent again."""
        whole = self.algorithm is not None
        weights = self.local_part(whole=whole) if call.keeps_network or not whole else {}
        states = (weights, self.algorithm.state_dict() if self.algorithm is not None else {})
        copies = [{name: tensor.detach().clone() for name, tensor in state.items()} for state in states]
        try:
            yield
        except BaseException:
            self.network.load_state_dict(copies[0], strict=False)
            if self.algorithm is not None:
                self.algorithm.reset()
                self.algorithm.load_state_dict(copies[1])
            raise


def split_state(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Splits a client's state into the weights that stay at the site (empty if there are none) and the rest."""
    rest = {name: tensor for name, tensor in state.items() if not name.startswith(_PREFIX)}
    return _without_prefix(state, _PREFIX), rest


def _without_prefix(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Returns the tensors whose names start with ``prefix``, without it."""
    return {name[len(prefix) :]: tensor for name, tensor in state.items() if name.startswith(prefix)}
