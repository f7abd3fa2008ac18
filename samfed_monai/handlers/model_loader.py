"""Saves an engine's trained weights to a file, and loads weights from a file into a network."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn

from samfed_monai.core.errors import Problem, refused
from samfed_monai.core.io import check_tensors, safe_load, save_tensors
from samfed_monai.core.model_file import setting_differences
from samfed_monai.core.validators import require
from samfed_monai.networks.key_patterns import network_split

logger = logging.getLogger(__name__)


class BestWeightsSaver:
    """Writes the trainer's network as safetensors whenever the evaluator's metric reaches a new maximum.

    Attach it to the trainer, after MONAI's ``ValidationHandler``. Without validation images it saves the last epoch.

    Args:
        evaluator: evaluator whose ``state.metrics`` is read.
        path: ``.safetensors`` file, replaced atomically. Its header has metric, value, epoch and image size, and for a
            network of the catalogue its name, classes and arguments; for other networks with several classes, whose
            names are unknown here, only metric, value and epoch.
        metric: name of the metric, larger is better.

    Raises:
        Refused: at ``STARTED``, a file of an earlier training.

    Example::

        {"_target_": "samfed_monai.handlers.BestWeightsSaver", "evaluator": "@validate#evaluator",
         "path": "runs/single/best.safetensors"}
    """

    def __init__(self, *, evaluator: Engine, path: str | Path, metric: str = "dice") -> None:
        self.evaluator, self.path, self.metric = evaluator, Path(path), metric
        self._best, self._written = float("-inf"), False

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._require_no_file)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def _require_no_file(self, engine: Any) -> None:
        if self.path.exists() and not self._written:
            expected, hint = "no file before training starts", "choose another output_dir, or move the file away"
            raise refused(str(self.path), "the model of an earlier training", expected, hint)

    def __call__(self, engine: Any) -> None:
        """Saves the weights if the metric has improved, or if there is none."""
        value = self.evaluator.state.metrics.get(self.metric)
        if value is not None and value <= self._best:
            return
        metadata = {"metric": self.metric, "value": str(value), "epoch": str(engine.state.epoch)}
        save_tensors(self.path, engine.network.state_dict(), _settings(engine) | metadata)
        self._written = True
        if value is not None:
            self._best = float(value)
            logger.info("epoch %d: best %s so far %.4f, saved to %s", engine.state.epoch, self.metric, value, self.path)


def _settings(engine: Any) -> dict[str, str]:
    """Settings of the network and its training, with the keys of :func:`samfed_monai.core.model_file.run_settings`."""
    output, settings = engine.state.output, dict[str, str](getattr(engine.network, "samfed_settings", {}))
    item = output[0] if isinstance(output, list) else output  # MONAI's `decollate` makes a list of images
    if settings or item["pred"].shape[-3] == 1:
        settings["image_size"] = str(item["image"].shape[-1])
    return settings


_MOST_REPORTED = 5  # problems of a file that are reported one by one


def trained_weights(network: nn.Module, path: str | Path) -> dict[str, Tensor]:
    """Reads weights for a network: all tensors, or all except frozen ones, which come from a checkpoint.

    Tensors in half precision, as in packaged bundles, are cast to the network's dtype.

    Args:
        network: the network; load the result with ``load_state_dict(..., strict=False)``.
        path: ``.safetensors``, or a torch file that loads with ``weights_only=True``; nothing is unpickled.

    Raises:
        Refused: names, shapes or dtypes that do not fit, or non-finite values. A partial file, or weights of another
            network, are one problem instead of one for every tensor.
    """
    state, frozen = network.state_dict(), set(network_split(network).frozen)
    weights = {
        name: tensor.to(state[name].dtype) if tensor.dtype == torch.float16 and name in state else tensor
        for name, tensor in safe_load(path).items()
    }
    needed = {name: tensor for name, tensor in state.items() if name not in frozen or weights.keys() & frozen}
    missing = [name for name in needed if name not in weights]
    problems = check_tensors(weights, like=needed, where=Path(path).name)
    if missing and weights.keys() <= needed.keys():
        found, expected = f"{len(missing)} missing, first {missing[0]}", "all tensors of this network"
        hint = "personal tensors are kept at the sites: samfed model RUN --site SITE --output FILE"
        problems = [Problem(str(path), found=found, expected=expected, hint=hint)]
    elif len(problems) > _MOST_REPORTED:
        found = f"{len(problems)} tensors that differ, for instance {problems[0]}"
        hint = (
            "give the --network_name of the training, or the bundle of the training, in which inference.json "
            "must build the same network_def as train.json"
        )
        problems = [Problem(str(path), found=found, expected="weights of this network", hint=hint)]
    require(problems)
    return weights


class ModelLoader:
    """Loads weights when the engine starts; they must fit the network, see :func:`trained_weights`.

    Args:
        path: ``.safetensors``, or a torch file that loads with ``weights_only=True``; nothing is unpickled.
        network: the network to fill.
        settings: options of this run; those that the weights' header has, too (``network_name``, ``image_size``), must
            be equal.

    Raises:
        Refused: at construction, a file that does not fit, or that was trained with other settings.

    Example::

        {"_target_": "samfed_monai.handlers.model_loader.ModelLoader", "path": "@model", "network": "@network"}
    """

    def __init__(self, *, path: str | Path, network: nn.Module, settings: dict[str, Any] | None = None) -> None:
        require(setting_differences(path, settings or {}))
        self.network, self.weights = network, trained_weights(network, path)

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        self.network.load_state_dict(self.weights, strict=False)
