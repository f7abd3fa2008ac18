"""Small components that replace Python expressions in a bundle's JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Events
from monai.engines import SupervisedEvaluator
from torch import nn

from samfed_monai.core.errors import Problem, Problems, Refused
from samfed_monai.core.process_setup import best_device as best_device
from samfed_monai.core.validators import in_range
from samfed_monai.handlers.handler_group import HandlerGroup
from samfed_monai.handlers.model_loader import BestWeightsSaver
from samfed_monai.handlers.records import BatchBar
from samfed_monai.networks.key_patterns import matched_names


def on_device(*, network: nn.Module, device: torch.device | str) -> nn.Module:
    """Moves a network to a device and returns it.

    Example::

        "network": {"_target_": "samfed_monai.bundle.on_device", "network": "@network_def", "device": "@device"}
    """
    return network.to(device)


def parameters_of(
    *, network: nn.Module, groups: Sequence[Mapping[str, Any]] = (), encoder_learning_rate: float | None = None
) -> list[Any]:
    """Returns all parameters of a network for an optimizer.

    Args:
        network: the network.
        encoder_learning_rate: peak learning rate of a pretrained encoder, whose weights the decoder's rate would spoil.
            The encoder's parameters that are in none of ``groups`` become the last group. ``None``, or without
            pretrained weights: no such group.
        groups: parameters with their own options, like torch's groups: ``params`` is a list of patterns of names
            (``*`` also matches dots), all other keys are options of the optimizer. A parameter is in the first group
            that matches; the remaining ones have the optimizer's own options.

    Returns:
        The parameters in the network's order; with groups, first those in no group, then each group.

    Raises:
        Refused: a group without patterns, a learning rate that is not a number above 0, a pattern that matches none of
            the remaining parameters; all at once.

    Example::

        "params": {
            "_target_": "samfed_monai.bundle.parameters_of", "network": "@network",
            "groups": [{"params": ["encoder.*"], "lr": 1e-4}]
        }
    """
    pretrained, problems = getattr(network, "pretrained", None), Problems()
    encoder_rate = encoder_learning_rate if pretrained else None
    if encoder_learning_rate is not None:
        problems.extend(in_range("encoder_learning_rate", encoder_learning_rate, "a learning rate", above=0))
    if not groups and encoder_rate is None:
        problems.refuse_if_any()
        return list(network.parameters())
    rest, chosen = dict(network.named_parameters()), []
    prefixes = ", ".join(dict.fromkeys(name.partition(".")[0] for name in rest))
    correct = f"correct the pattern or remove it; names begin with {prefixes}"
    for index, group in enumerate(groups):
        where = f"optimizer#params#groups#{index}"
        options = dict(group) if isinstance(group, Mapping) else {}
        patterns, rate = options.pop("params", None), options.get("lr", 1.0)
        problems.extend(in_range(f"{where}#lr", rate, "a learning rate", above=0))
        with problems.collected():
            matched = matched_names(list(rest), patterns, f"{where}#params", kind="parameter", hint=correct)
            chosen.append({"params": [rest.pop(name) for name in list(rest) if name in matched], **options})
    problems.refuse_if_any()
    if encoder_rate is not None:
        encoder = [rest.pop(name) for name in list(rest) if name.startswith(f"{pretrained}.")]
        chosen += [{"params": encoder, "lr": encoder_rate}] if encoder else []
    return [{"params": list(rest.values())}, *chosen] if rest else chosen


def part_of(*, of: Any, name: str) -> Any:
    """Returns a public attribute of another component.

    Args:
        of: the component.
        name: name of one attribute, without dots or a leading underscore.

    Raises:
        Refused: an invalid name, or the component has no such attribute.

    Example::

        "train_records": {"_target_": "samfed_monai.bundle.part_of", "of": "@public", "name": "train"}
    """
    if not name.isidentifier() or name.startswith("_") or not hasattr(of, name):
        expected = f"the name of a public attribute of {type(of).__name__}"
        raise Refused([Problem("part_of -> name", found=repr(name), expected=expected)])
    return getattr(of, name)


def model_path(*, model: str | None, bundle_root: str | Path) -> str:
    """Returns the path of the given weights, else that of the weights in the bundle's folder ``models``.

    ``models/model.safetensors`` has priority over ``models/model.pt``, the name that MONAI's own tools use.

    Example::

        "model_path": {"_target_": "samfed_monai.bundle.model_path", "model": "@model", "bundle_root": "@bundle_root"}
    """
    if model:
        return model
    own = Path(bundle_root) / "models" / "model.safetensors"
    return str(own if own.is_file() else own.with_suffix(".pt"))


class SiteAlone(HandlerGroup):
    """Validates every ``interval`` epochs, saves the best weights, and shows a progress bar.

    Args:
        evaluator: evaluator of the site's validation images.
        output_dir: folder for ``best.safetensors``.
        interval: epochs from one validation to the next.

    Raises:
        Refused: at ``STARTED``, no image to train on (an epoch without steps would look like a finished training), or
            a ``best.safetensors`` of an earlier training.

    Example::

        {"_target_": "samfed_monai.bundle.SiteAlone", "evaluator": "@validate#evaluator", "output_dir": "@output_dir"}
    """

    def __init__(self, *, evaluator: SupervisedEvaluator, output_dir: str | Path, interval: int = 1) -> None:
        from monai.handlers import ValidationHandler

        super().__init__(
            handlers=[
                ValidationHandler(interval, evaluator),
                BestWeightsSaver(evaluator=evaluator, path=Path(output_dir) / "best.safetensors"),
                BatchBar(what="training"),
            ]
        )

    def attach(self, engine: Any) -> None:
        """Attaches the handlers to a trainer."""
        engine.add_event_handler(Events.STARTED, _require_images)
        super().attach(engine)


def _require_images(engine: Any) -> None:
    if not len(engine.data_loader.dataset):
        hint = "list public images with masks, or choose a variant that trains only on the site's own images"
        raise Refused([Problem("train#dataset", found="no image", expected="training images", hint=hint)])
