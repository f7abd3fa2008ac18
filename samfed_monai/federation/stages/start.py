"""What the networks of a run begin with: what the server holds of it, and what each site keeps of it from then on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from samfed_monai.core.errors import Problem, Refused
from samfed_monai.core.seeds import derive_seed
from samfed_monai.federation.random_state import own_random_state
from samfed_monai.networks.key_patterns import KeySplit, network_split

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Start:
    """One network before round 0.

    Args:
        whole: every tensor.
        split: of its names.
    """

    whole: Mapping[str, Tensor]
    split: KeySplit

    @classmethod
    def of(
        cls, build: Callable[[], nn.Module], warm: Mapping[str, Tensor], *, personal: Sequence[str], seed: int
    ) -> Start:
        """A network with the weights of a warm start in it.

        What the warm start does not have begins as the network is built, with numbers of ``seed``: frozen weights,
        which come from a checkpoint, and experts, which add nothing before they are trained. All sites get the same.

        Args:
            build: builds the network.
            warm: of a warm start.
            personal: ``train.json -> personal``.
            seed: the run's seed.

        Raises:
            Refused: patterns that :func:`network_split` refuses; a warm start that trained what is frozen here, or
                another network.
        """
        with own_random_state(derive_seed(seed, "server", "start")):
            network = build()
        split = network_split(network, personal)
        own = {name: tensor.detach().cpu() for name, tensor in network.state_dict().items()}
        alien = sorted(name for name in warm if name not in own or warm[name].shape != own[name].shape)
        if alien:
            raise _refusal(f"{len(alien)} tensors of another network, first {alien[0]}")
        lost = [name for name in split.frozen if name in warm and not warm[name].equal(own[name])]
        if lost:
            raise _refusal(f"{len(lost)} trained tensors that are frozen at the sites, first {lost[0]}")
        return cls({name: warm.get(name, own[name]) for name in own}, split)

    @property
    def shared(self) -> dict[str, Tensor]:
        """What is aggregated."""
        return {name: self.whole[name] for name in self.split.shared}

    @property
    def personal(self) -> dict[str, Tensor]:
        """What stays at a site that takes part in an aggregate."""
        return {name: self.whole[name] for name in self.split.personal}

    @property
    def trained(self) -> dict[str, Tensor]:
        """What a site keeps that keeps its whole network: all but what is frozen."""
        frozen = set(self.split.frozen)
        return {name: tensor for name, tensor in self.whole.items() if name not in frozen}


def _refusal(found: str) -> Refused:
    expected = "a warm start of the run's own network, which trains nothing that is frozen there"
    mend = "let warm_start and network_def agree on rank, lora_targets and decoder, or set warm_start_steps to 0"
    return Refused([Problem("train.json -> warm_start", found=found, expected=expected, mend=mend)])
