"""Builds the components of a run once, without data, so that errors are found before anything is computed."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from samfed_monai.config.parse import parsed
from samfed_monai.config.wrapped_errors import component_refusal, unwrap_own
from samfed_monai.core.errors import Problem, Problems, Refused
from samfed_monai.core.training_state import own_random_state
from samfed_monai.federation.workflow import WorkflowConfig, unfilled
from samfed_monai.networks.input_size import batch_problems, size_advice, size_problems
from samfed_monai.networks.key_patterns import KeySplit, network_split

logger = logging.getLogger(__name__)

Shapes = dict[str, tuple[int, ...]]
#: Ids of the training batches that a client network sees.
BATCHES = "train#dataloader#batch_size", "unlabelled#dataloader#batch_size", "sharing#batch_size"
#: Ids whose components read no image and compute nothing when they are built.
PARTS = "optimizer", "images", "terms"


@dataclass(frozen=True)
class BuiltNetwork:
    """A network as a site, or the server, would have it.

    Args:
        site: who has it first; several may have it.
        network: its name.
        shapes: of its tensors, by name.
        split: what of it is shared, personal and frozen.
    """

    site: str
    network: str
    shapes: Shapes
    split: KeySplit


def dry_run(
    config: WorkflowConfig,
    networks: Mapping[str, str],
    overrides: Mapping[str, Mapping[str, Any]],
    *,
    one_network: bool,
) -> list[BuiltNetwork]:
    """Builds each network of a run once and looks whether it takes the images, and whether names of its parts fit it;
    with it its optimizer, its terms and what reads its images.

    Args:
        config: the run's ``train.json``.
        networks: who (a site, or the server) to the name of their network.
        overrides: what each changes in ``train.json``; nobody has to be in it.
        one_network: whether the strategy averages weights, so that all must be alike.

    Returns:
        The networks that differ in their name or in what a site changes.

    Raises:
        Refused: an image size or a batch that a network cannot take (the message has the nearest that it can), a
            pattern of ``personal`` or of the optimizer's groups that matches nothing, values that the optimizer or a
            term does not take, missing weights of SAM, or unlike networks where all must be alike.
    """
    problems, found = Problems(), dict[str, BuiltNetwork]()
    for site, name in networks.items():
        own = {**overrides.get(site, {}), "network_name": name}
        key = json.dumps(own, sort_keys=True, default=repr)
        if key in found:
            continue
        parser = unfilled(config.with_overrides({**own, "network": "@network_def"}).parser())  # on no device
        with own_random_state(0):  # nothing that is drawn here is used
            network = parser.get_parsed_content("network_def")
        size = parsed(parser, "image_size")
        if isinstance(size, int):
            problems.extend(size_problems(network, height=size, width=size))
            for advice in size_advice(network, size):
                logger.info("%s", advice)
        problems.extend(batch_problems(network, **_batches(parser)))
        split = KeySplit((), (), ())
        for part in PARTS:
            problems.extend(_part_problems(parser, part))
        with problems.collected():
            split = network_split(network, parsed(parser, "personal") or ())
        shapes = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
        found[key] = BuiltNetwork(site, name, shapes, split)
    problems.refuse_if_any()
    built = list(found.values())
    if one_network:
        _require_alike(built)
    return built


def _part_problems(parser: Any, name: str) -> list[Problem]:
    """Why a part of ``train.json`` cannot be built; nothing where the bundle does not have it."""
    try:
        parsed(parser, name)
    except RuntimeError as error:
        told = unwrap_own(error)
        if told is None and name == "optimizer":  # a user's own term may miss a site's place, here where there is none
            told = component_refusal(error, lambda: parser, file="train.json")
        if isinstance(told, Refused):
            return told.problems
    return []  # any other error is reported where a site builds the component


def _batches(parser: Any) -> dict[str, int]:
    """Images of each training batch, by the knob where that decides it and else by id."""
    knob, found = parsed(parser, "batch_size"), dict[str, int]()
    for name in BATCHES:
        images = parsed(parser, name)
        if isinstance(images, int):
            found["batch_size" if images == knob else name] = images
    return found


def _require_alike(built: list[BuiltNetwork]) -> None:
    """Refuses networks that cannot be averaged; it names two sites and the first tensor in which theirs differ."""
    first, *others = built
    for other in others:
        key = next((k for k in [*first.shapes, *other.shapes] if first.shapes.get(k) != other.shapes.get(k)), None)
        if key is not None:
            sides = ", ".join(_told(each, key) for each in (first, other))
            expected = "one network at all sites: FedAvg averages weights"
            hint = (
                "give all sites one network, or use --variant heterogeneous, which lets unlike networks learn together"
            )
            raise Refused([Problem("sites", found=f"{key}: {sides}", expected=expected, hint=hint)])


def _told(one: BuiltNetwork, key: str) -> str:
    shape = f"shape {list(one.shapes[key])}" if key in one.shapes else "no such tensor"
    return f"{one.site} ({one.network}) has {shape}"
