"""Hooks on the features between encoder and decoder: changed within a block, or read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from samfed_monai.core.errors import Problem, Refused
from samfed_monai.networks.input_size import head_of

Handle = Any


@contextmanager
def changed_features(network: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside the block, each feature map on its way from encoder to decoder is what ``change`` makes of it.

    It works for networks with an ``encoder`` that returns a list of feature maps (those of
    segmentation_models_pytorch, MONAI's FlexibleUNet), deepest last, and for MONAI's BasicUNet, deepest first.

    Args:
        network: left as it was afterwards.
        change: from (B, C, h, w) to the same shape; called once for each map, in the order of the network's.

    Raises:
        Refused: a network that does not show its encoder.
    """
    handles = _hooks(network, change)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def encoder_maps(network: nn.Module, run: Callable[[], object]) -> list[Tensor]:
    """The feature maps that go from encoder to decoder in one call, finest first.

    Maps of one size stay in the encoder's order: behind dilated convolutions the last of them is the deepest.

    Args:
        network: see :func:`changed_features`.
        run: makes the call, once.

    Returns:
        (B, C, h, w) each, with a gradient where the call has one.

    Raises:
        Refused: a network that does not show its encoder.
    """
    maps: list[Tensor] = []

    def keep(features: Tensor) -> Tensor:
        maps.append(features)
        return features

    with changed_features(network, keep):
        run()
    return sorted(maps, key=lambda each: -each.shape[-1])


@contextmanager
def feature_dropout(network: nn.Module, drop: float = 0.5) -> Iterator[None]:
    """Inside the block, each channel of each feature map on its way to the decoder is zeroed with a chance.

    Those that stay are scaled by ``1 / (1 - drop)`` (``dropout2d``), in eval mode as well. For which networks:
    :func:`changed_features`.

    Args:
        network: left as it was afterwards.
        drop: chance of a channel, in [0, 1).

    Raises:
        Refused: a network that does not show its encoder.
    """
    with changed_features(network, lambda features: functional.dropout2d(features, drop, training=True)):
        yield


class LastFeatures:
    """Keeps the input of a network's head, or of another part of it, in each call that trains, while it listens.

    Listen for one iteration at a time: guides copy the network between iterations, and would copy the hook with it.
    ``listen`` and ``stop`` are event handlers, too, and take the engine that they do not need.

    Args:
        network: whose features.
        part: of the network, in place of its head.

    Raises:
        Refused: a network whose head is not known.
    """

    def __init__(self, network: nn.Module, part: nn.Module | None = None) -> None:
        self.kept: list[Tensor] = []
        self._part = head_of(network) if part is None else part
        self._hook: Handle | None = None

    def attach(self, engine: Any) -> None:
        """Listens in each iteration of a trainer until its loss is there: to what terms attached before this read."""
        from ignite.engine import Events
        from monai.engines.utils import IterationEvents

        engine.add_event_handler(Events.ITERATION_STARTED, self.listen)
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self.stop)
        engine.add_event_handler(Events.STARTED, self.stop)

    def listen(self, engine: object = None) -> None:
        """Begins anew."""
        self.stop()
        self._hook = self._part.register_forward_pre_hook(self._keep)

    def stop(self, engine: object = None) -> None:
        """Lets go of the features and of the network."""
        self.kept.clear()
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def _keep(self, part: nn.Module, inputs: tuple[Any, ...]) -> None:
        if part.training and torch.is_grad_enabled():
            self.kept.append(inputs[0])


def require_encoder(network: nn.Module, asked_by: str) -> None:
    """Refuses a network whose features :func:`feature_dropout` could not reach.

    Args:
        network: the network.
        asked_by: who needs it, for the message.
    """
    for handle in _hooks(network, lambda features: features, asked_by):
        handle.remove()


def _hooks(network: nn.Module, change: Callable[[Tensor], Tensor], asked_by: str = "feature_dropout") -> list[Handle]:
    encoder = getattr(network, "encoder", None)
    if isinstance(encoder, nn.Module):
        return [encoder.register_forward_hook(lambda _, inputs, output: _encoded(inputs, output, change))]
    stages = [getattr(network, f"upcat_{stage}", None) for stage in (4, 3, 2, 1)]
    if all(isinstance(stage, nn.Module) for stage in stages):
        return [  # BasicUNet: the deepest stage takes two maps of the encoder, the others one beside their own
            stage.register_forward_pre_hook(lambda _, inputs, first=index == 0: _joined(inputs, first, change))
            for index, stage in enumerate(stages)
            if stage is not None
        ]
    expected = "an encoder that returns its feature maps (segmentation_models_pytorch, FlexibleUNet, BasicUNet)"
    hint = "choose such a network, or set the weight of what looks at features to 0"
    raise Refused([Problem(asked_by, type(network).__name__, expected, hint)])


def _encoded(inputs: tuple[Any, ...], output: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(output, Tensor):
        return change(output)
    if not isinstance(output, (list, tuple)) or not all(isinstance(each, Tensor) for each in output):
        found = f"an encoder that returns {type(output).__name__}"
        raise Refused([Problem("feature_dropout", found, "a list of feature maps (B, C, H, W)")])
    # the encoders of segmentation_models_pytorch return the image itself as their first map
    changed = [each if each is inputs[0] else change(each) for each in output]
    return type(output)(changed)


def _joined(inputs: tuple[Any, ...], first: bool, change: Callable[[Tensor], Tensor]) -> tuple[Any, ...]:
    below, skip, *rest = inputs
    return (change(below) if first else below, None if skip is None else change(skip), *rest)
