"""Puts trained weights into an evaluator's network, and refuses those that were trained otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ignite.engine import Events

from samfed_monai.errors import Refused
from samfed_monai.handlers.trained_weights import trained_weights
from samfed_monai.trained_model import trained_otherwise

if TYPE_CHECKING:
    from ignite.engine import Engine
    from torch import nn


class ModelLoader:
    """Loads weights when the engine starts: they must fit the network, see :func:`trained_weights`.

    Args:
        path: ``.safetensors``, or a torch file that loads with ``weights_only=True``; nothing is unpickled.
        network: the network to fill.
        settings: knobs of this run, compared with those that the weights' header names (``network_name``,
            ``image_size``); what either side does not name is not compared.

    Raises:
        Refused: a file that does not fit, or that was trained with other settings; when it is built, not later.

    Example::

        {"_target_": "samfed_monai.handlers.model_loader.ModelLoader", "path": "@model", "network": "@network"}
    """

    def __init__(self, *, path: str | Path, network: nn.Module, settings: dict[str, Any] | None = None) -> None:
        if problems := trained_otherwise(path, settings or {}):
            raise Refused(problems)
        self.network, self.weights = network, trained_weights(network, path)

    def attach(self, engine: Engine) -> None:
        """Binds the handler to an evaluator."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        self.network.load_state_dict(self.weights, strict=False)
