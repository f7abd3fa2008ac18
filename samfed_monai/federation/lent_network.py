"""One network at a site, for training and evaluation: the evaluator borrows the trainer's and gives it back."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

_NETWORK = "network"  # the id that MONAI's bundles give it


def with_network_of(overrides: dict[str, Any], network: Callable[[], nn.Module]) -> dict[str, Any]:
    """Overrides of an evaluation workflow that takes a network that exists instead of building its own.

    Args:
        overrides: of the workflow; a ``network`` among them is replaced.
        network: called once the workflow asks for ``@network``.
    """
    return {**overrides, _NETWORK: {"_target_": network}}


@contextmanager
def lent(network: nn.Module, frozen: Collection[str] = ()) -> Iterator[None]:
    """Gives a network back, after a block that loads weights into it, as it was: weights, buffers and modes.

    Args:
        network: of the trainer.
        frozen: names that no message has; they are not copied, which of a SAM is most of it.
    """
    modes = [(module, module.training) for module in network.modules()]
    before = {name: tensor.detach().clone() for name, tensor in network.state_dict().items() if name not in frozen}
    try:
        yield
    finally:
        network.load_state_dict(before, strict=False)
        for module, mode in modes:
            module.training = mode
