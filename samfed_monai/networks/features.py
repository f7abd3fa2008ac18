"""Access to a network's features: maps between encoder and decoder, the head's input, channels selected by site."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from samfed_monai.core.errors import Problem, Refused, refused
from samfed_monai.core.validators import require, whole


@contextmanager
def changed_features(network: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside the block, applies ``change`` to each feature map between encoder and decoder.

    It supports networks with an ``encoder`` that returns a list of feature maps (those of
    segmentation_models_pytorch, MONAI's FlexibleUNet), deepest last, and MONAI's BasicUNet, deepest first.

    Args:
        network: a supported network; it is restored afterwards.
        change: maps (B, C, h, w) to the same shape; called once per map, in the network's order.

    Raises:
        Refused: a network whose encoder cannot be reached.
    """
    with ExitStack() as hooks:
        for hook in _hooks(network, change):
            hooks.enter_context(hook)
        yield


def encoder_maps(network: nn.Module, run: Callable[[], object]) -> list[Tensor]:
    """Returns the feature maps between encoder and decoder in one call, finest first.

    Maps of the same size keep the encoder's order: with dilated convolutions the last of them is the deepest.

    Args:
        network: see :func:`changed_features`.
        run: calls the network once.

    Returns:
        (B, C, h, w) each, with a gradient if the call has one.

    Raises:
        Refused: a network whose encoder cannot be reached.
    """
    maps: list[Tensor] = []

    def collect(features: Tensor) -> Tensor:
        maps.append(features)
        return features

    with changed_features(network, collect):
        run()
    return sorted(maps, key=lambda each: -each.shape[-1])


@contextmanager
def feature_dropout(network: nn.Module, drop: float) -> Iterator[None]:
    """Inside the block, drops channels of the feature maps between encoder and decoder at random.

    The others are scaled by ``1 / (1 - drop)`` (``dropout2d``), even in eval mode.

    Args:
        network: see :func:`changed_features`.
        drop: probability to drop a channel, in [0, 1).

    Raises:
        Refused: a network whose encoder cannot be reached.
    """
    with changed_features(network, lambda features: functional.dropout2d(features, drop, training=True)):
        yield


class LastFeatures:
    """Keeps the input of a network's head, or of another part of it, in each training call while it listens.

    Listen for one iteration at a time: guides copy the network between iterations, and would copy the hook with it.
    ``listen`` and ``stop`` ignore their engine, which lets them serve as event handlers.

    Args:
        network: the network.
        part: a part of the network, instead of its head.

    Raises:
        Refused: a network with an unknown head.
    """

    def __init__(self, network: nn.Module, part: nn.Module | None = None) -> None:
        self.inputs: list[Tensor] = []
        self._part = head_of(network) if part is None else part
        self._hook: Any = None

    def attach(self, engine: Any) -> None:
        """Listens in each iteration of a trainer until its loss is computed; attach terms that read it before this."""
        from ignite.engine import Events
        from monai.engines.utils import IterationEvents

        engine.add_event_handler(Events.ITERATION_STARTED, self.listen)
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self.stop)
        engine.add_event_handler(Events.STARTED, self.stop)

    def listen(self, engine: object = None) -> None:
        """Clears the features and starts to keep new ones."""
        self.stop()
        self._hook = self._part.register_forward_pre_hook(self._store_input)

    def stop(self, engine: object = None) -> None:
        """Clears the features and removes the hook."""
        self.inputs.clear()
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def _store_input(self, part: nn.Module, inputs: tuple[Any, ...]) -> None:
        if part.training and torch.is_grad_enabled():
            self.inputs.append(inputs[0])


def require_encoder(network: nn.Module, where: str) -> None:
    """Refuses a network that :func:`changed_features` does not support.

    Args:
        network: the network.
        where: name of the caller, for the message.
    """
    for handle in _hooks(network, lambda features: features, where):
        handle.remove()


def _hooks(network: nn.Module, change: Callable[[Tensor], Tensor], where: str = "feature_dropout") -> list[Any]:
    encoder = getattr(network, "encoder", None)
    if isinstance(encoder, nn.Module):
        return [encoder.register_forward_hook(lambda _, inputs, output: _change_output(inputs, output, change))]
    stages = [getattr(network, f"upcat_{stage}", None) for stage in (4, 3, 2, 1)]
    if all(isinstance(stage, nn.Module) for stage in stages):
        return [  # BasicUNet: the deepest stage takes two maps of the encoder, each other stage takes one
            stage.register_forward_pre_hook(lambda _, inputs, both=index == 0: _change_inputs(inputs, both, change))
            for index, stage in enumerate(stages)
            if stage is not None
        ]
    expected = "an encoder that returns its feature maps (segmentation_models_pytorch, FlexibleUNet, BasicUNet)"
    hint = "choose such a network, or set the weight of the terms that use features to 0"
    raise refused(where, type(network).__name__, expected, hint)


def _change_output(inputs: tuple[Any, ...], output: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(output, Tensor):
        return change(output)
    if not isinstance(output, (list, tuple)) or not all(isinstance(each, Tensor) for each in output):
        found = f"an encoder that returns {type(output).__name__}"
        raise refused("feature_dropout", found, "a list of feature maps (B, C, H, W)")
    # the encoders of segmentation_models_pytorch return the image itself as their first map
    return type(output)([each if each is inputs[0] else change(each) for each in output])


def _change_inputs(inputs: tuple[Any, ...], both: bool, change: Callable[[Tensor], Tensor]) -> tuple[Any, ...]:
    deeper, skip, *rest = inputs
    return (change(deeper) if both else deeper, None if skip is None else change(skip), *rest)


HEADS = ("segmentation_head", "final_conv", "head")


def head_of(network: nn.Module) -> nn.Module:
    """Returns the module that turns features into logits.

    Raises:
        Refused: a network without one of :data:`HEADS`.
    """
    for name in HEADS:
        head = getattr(network, name, None)
        if isinstance(head, nn.Module):
            return head
    hint = "use a network of the catalogue, or give its head one of these names"
    raise refused("network", type(network).__name__, f"a network with one of {list(HEADS)}", hint)


def feature_width(network: nn.Module) -> int:
    """Returns the number of feature channels: the input channels of the head's first convolution."""
    for module in head_of(network).modules():
        if isinstance(module, nn.modules.conv._ConvNd):
            return int(module.in_channels)
    raise refused("network", found="a head without a convolution", expected="a convolution")


SELECTION = "selection"
"""Name of the selection module in the encoder whose deepest features it weights."""
CODES = f"{SELECTION}.codes"
"""Suffix of the name of its buffer in the network's state, which has the codes of this site and of all sites."""
_REDUCTION = 16


class ChannelSelection(nn.Module):
    """FedICRA's personalised channel selection: ``x + x * sigmoid(s(mean x, e) + s(max x, e))``.

    ``e`` is computed by two 1 x 1 convolutions without bias from the site's code, which is 1 at its place and 0
    elsewhere; ``s`` are two such convolutions with 16 times fewer channels between them, shared by mean and maximum,
    on the concatenation of the pooled features and ``e``. This is the public code (``PersonalizedChannelSelection``),
    whose modules are in a plain list and therefore neither trained nor sent; here they are both, as in the paper.

    Ours: the code is a buffer that the server sets (:class:`samfed_monai.methods.fedicra.SiteCodes`), with a second
    row for the places in use; zeros are an unknown site.

    Args:
        channels: channels of the features.
        places: maximum number of sites.
    """

    codes: Tensor

    def __init__(self, channels: int, places: int) -> None:
        super().__init__()
        hidden = max(1, channels // _REDUCTION)
        self.embed = nn.Sequential(
            nn.Conv2d(places, channels, 1, bias=False), nn.ReLU(), nn.Conv2d(channels, channels, 1, bias=False)
        )
        self.weigh = nn.Sequential(
            nn.Conv2d(2 * channels, hidden, 1, bias=False), nn.ReLU(), nn.Conv2d(hidden, channels, 1, bias=False)
        )
        self.register_buffer("codes", torch.zeros(2, places))

    def channel_weights(self, features: Tensor, code: Tensor) -> Tensor:
        """Maps ``(B, C, h, w)`` and a code ``(places,)`` to weights ``(B, C, 1, 1)`` in (0, 1)."""
        site = self.embed(code.view(1, -1, 1, 1)).expand(len(features), -1, -1, -1)
        mean, maximum = features.mean((2, 3), keepdim=True), features.amax((2, 3), keepdim=True)
        logits: Tensor = self.weigh(torch.cat([mean, site], 1)) + self.weigh(torch.cat([maximum, site], 1))
        return torch.sigmoid(logits)

    def forward(self, features: Tensor) -> Tensor:
        """Maps ``(B, C, h, w)`` to the same shape, with channels weighted for this site."""
        return features + features * self.channel_weights(features, self.codes[0])

    def others(self) -> list[Tensor]:
        """Returns the codes of the other sites, ``(places,)`` each, in the order of their places."""
        own_code, used = self.codes
        return [code for code in torch.eye(len(used)).to(used)[used > 0] if not torch.equal(code, own_code)]


def select_channels(network: nn.Module, places: int) -> nn.Module:
    """Adds a :class:`ChannelSelection` to a network's encoder, in place; names of its other parts are unchanged.

    Args:
        network: a network with an ``encoder`` that returns its feature maps, deepest last, and has ``out_channels``
            (the light pyramids, segmentation_models_pytorch's), or MONAI's BasicUNet.
        places: maximum number of sites, >= 2.

    Raises:
        Refused: another network, or fewer than two places.
    """
    where, part = "network_def#site_channels", _encoder_of(network)
    channels = _deepest_channels(part) if part is not None else None
    expected = "a network whose encoder returns its feature maps, such as mobile_sam_fpn or deeplabv3plus_resnet18"
    unsupported = [Problem(where, type(network).__name__, expected, "choose another network_name")]
    problems = whole(where, places, "the maximum number of sites", least=2)
    if part is None or channels is None:
        raise Refused([*problems, *unsupported])
    require(problems)
    part.add_module(SELECTION, ChannelSelection(channels, places))
    if not isinstance(part, nn.Sequential):  # BasicUNet's stages are sequential and run the added module themselves
        part.register_forward_hook(_select_deepest)
    return network


def selection_of(network: nn.Module, where: str) -> ChannelSelection:
    """Returns the module that :func:`select_channels` added to a network.

    Args:
        network: the network.
        where: name of the caller, for the message.

    Raises:
        Refused: there is none.
    """
    selection = getattr(_encoder_of(network), SELECTION, None)
    if isinstance(selection, ChannelSelection):
        return selection
    hint = "set network_def#site_channels to the maximum number of sites, for instance 16"
    raise refused(where, found="no channel selection", expected="a network with channel selection", hint=hint)


def _select_deepest(encoder: nn.Module, inputs: tuple[Tensor], features: list[Tensor]) -> list[Tensor]:
    """Forward hook; it uses the module of the encoder that called it, so that copies use their own."""
    return [*features[:-1], encoder.selection(features[-1])]  # type: ignore[operator]


def _encoder_of(network: nn.Module) -> nn.Module | None:
    """Returns the encoder, or BasicUNet's deepest stage."""
    encoder = getattr(network, "encoder", getattr(network, "down_4", None))
    return encoder if isinstance(encoder, nn.Module) else None


def _deepest_channels(part: nn.Module) -> int | None:
    channels: Any = getattr(part, "out_channels", None)
    if isinstance(channels, (list, tuple)) and channels:
        return int(channels[-1])
    widths = [module.out_channels for module in part.modules() if isinstance(module, nn.Conv2d)]
    return widths[-1] if widths and hasattr(part, "max_pooling") else None  # MONAI's Down
