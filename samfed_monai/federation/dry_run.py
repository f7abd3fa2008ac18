"""Builds the components of a run once, without data, so that errors are found before anything is computed."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from samfed_monai.config.parse import parsed, reached
from samfed_monai.config.workflow import component_refusal, unwrap_own, unwrapped
from samfed_monai.core.errors import Problem, Problems, Refused
from samfed_monai.core.training_state import own_random_state
from samfed_monai.data.classes import outputs_of
from samfed_monai.data.weak_labels import IGNORE
from samfed_monai.federation.workflow import TRAIN, WorkflowConfig, unfilled
from samfed_monai.handlers.term import Term
from samfed_monai.losses import without_label
from samfed_monai.networks.input_size import batch_problems, size_problems
from samfed_monai.networks.key_patterns import KeySplit, network_split

logger = logging.getLogger(__name__)

Shapes = dict[str, tuple[int, ...]]
#: Ids of the training batches that a client network sees.
BATCHES = "train#dataloader#batch_size", "unlabelled#dataloader#batch_size", "sharing#batch_size"
#: What a site's labels go through on their way to the loss.
OF_LABELS = "resize", "binary_label"
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
        terms: names of the terms that it trains with; ``None`` where they cannot be built without a site.
    """

    site: str
    network: str
    shapes: Shapes
    split: KeySplit
    terms: tuple[str, ...] | None


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
        overrides: what each changes in ``train.json``; sites without changes may be missing.
        one_network: whether the strategy averages weights, so that all must be alike.

    Returns:
        The networks that differ in their name or in what a site changes.

    Raises:
        Refused: an image size or a batch that a network cannot take (the message has the nearest that it can), a
            pattern of ``personal`` or of the optimizer's groups that matches nothing, values that the optimizer or a
            term does not take, a guide that a term names and that is not there, weak labels (``images#weak_labels``)
            whose unlabelled pixels would be learned from, missing weights of SAM, or unlike networks where all
            must be alike.
    """
    problems, found = Problems(), dict[str, BuiltNetwork]()
    for site, name in networks.items():
        own = {**overrides.get(site, {}), "network_name": name}
        key = json.dumps(own, sort_keys=True, default=repr)
        if key in found:
            continue
        parser = unfilled(config.with_overrides({**own, "network": "@network_def"}).parser())  # on no device
        with own_random_state(0), unwrapped(parser):  # nothing that is drawn here is used
            network = parser.get_parsed_content("network_def")
        size = parsed(parser, "image_size")
        if isinstance(size, int):
            problems.extend(size_problems(network, height=size, width=size))
        problems.extend(batch_problems(network, **_batches(parser)))
        split = KeySplit((), (), ())
        for part in PARTS:
            problems.extend(_part_problems(parser, part))
        terms = _terms(parser)
        problems.extend(_guide_problems(parser, terms or ()))
        problems.extend(_weak_label_problems(parser))
        problems.extend(_loss_problems(parser))
        with problems.collected():
            split = network_split(network, parsed(parser, "personal") or ())
        shapes = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
        found[key] = BuiltNetwork(
            site, name, shapes, split, None if terms is None else tuple(term.name for term in terms)
        )
    problems.refuse_if_any()
    built = list(found.values())
    if one_network:
        _require_alike(built)
    return built


def _part_problems(parser: Any, name: str) -> list[Problem]:
    """Why a part of ``train.json`` cannot be built; nothing where the bundle does not have it."""
    try:
        part = parsed(parser, name)
        return _rate_problems(part) if name == "optimizer" else []
    except RuntimeError as error:
        refused = unwrap_own(error)
        if (
            refused is None and name == "optimizer"
        ):  # a user's own term may miss a site's place, here where there is none
            refused = component_refusal(error, parser.get(), file="train.json")
        if isinstance(refused, Refused):
            return refused.problems
    return []  # any other error is reported where a site builds the component


def _terms(parser: Any) -> list[Term] | None:
    """The terms that a site trains with; ``None`` where one cannot be built, which is reported elsewhere."""
    if "terms" not in reached(parser.get(), [TRAIN]):
        return []
    try:
        terms = parsed(parser, "terms")
    except RuntimeError:
        return None
    return [term for term in terms.values() if isinstance(term, Term)] if isinstance(terms, Mapping) else []


def _guide_problems(parser: Any, terms: Sequence[Term]) -> list[Problem]:
    """Guides that terms name and that are disabled or not there."""
    try:
        guides = parsed(parser, "guides")
    except RuntimeError:
        return []  # reported where a site builds the component
    known = [guide.name for guide in guides.values()] if isinstance(guides, Mapping) else []
    return [problem for term in terms for problem in term.missing_guides(known)]


def _rate_problems(optimizer: Any) -> list[Problem]:
    """Learning rates of an optimizer, of whichever option, that no network of this package has learned with."""
    rates = sorted({float(group["lr"]) for group in getattr(optimizer, "param_groups", ()) if "lr" in group})
    hint = "set learning_rate, or lr of the optimizer and of its groups"
    return [
        Problem("train.json -> optimizer", found=f"a learning rate of {rate:g}", expected="0 to 1", hint=hint)
        for rate in rates
        if not 0 <= rate <= 1
    ]


def _loss_problems(parser: Any) -> list[Problem]:
    """A loss for probabilities, where the network gives logits.

    Of two answers to the same label, logits of 4 and -4 are the better ones, and 0 and 1 as logits the worse. Few
    pixels are foreground: without this, a Dice of logits would fall below zero, and look like the best of all.
    """
    try:
        loss, classes = parsed(parser, "loss"), parsed(parser, "classes")
    except RuntimeError:
        return []  # reported where a site builds the component
    channels = outputs_of(classes)
    label = torch.zeros(1, 1, 32, max(32, 8 * channels))
    for value in range(1, max(2, channels)):  # a corner each
        label[..., 8 * (value - 1) : 8 * (value - 1) + 4, :4] = value
    right = label if channels == 1 else torch.cat([(label == value).float() for value in range(channels)], dim=1)
    values, expected = [], "one that takes the network's logits"
    hint = "add sigmoid true, or softmax for several classes, or take a loss with logits, such as BCEWithLogitsLoss"
    for answer in (right, 8 * right - 4):
        try:
            values.append(float(loss(answer, label)))
        except Exception as error:  # a loss of the user's own may raise anything
            if not values:
                return []  # it takes neither: reported where a site trains
            found = f"{type(loss).__name__}, which does not take them ({str(error).splitlines()[0]})"
            return [Problem("train.json -> loss", found=found, expected=expected, hint=hint)]
    if values[1] <= values[0]:
        return []
    found = f"{type(loss).__name__}: {values[1]:.3g} for the right answer, {values[0]:.3g} for an undecided one"
    return [Problem("train.json -> loss", found=found, expected=expected, hint=hint)]


def _weak_label_problems(parser: Any) -> list[Problem]:
    """What takes an unlabelled pixel of a weak label for one with a label, where a site reads weak labels.

    A label with all three kinds of pixels goes through the site's transforms and its loss; of several classes as
    planes, none of which has the pixels without a label.
    """
    if parsed(parser, "images#weak_labels") is not True:
        return []
    label = torch.full((1, 17, 17), float(IGNORE))  # of a size that no resizing keeps pixel by pixel
    label[:, :4], label[:, 4:8] = 0, 1
    outputs = outputs_of(parsed(parser, "classes"))
    if outputs > 1:
        label = torch.cat([label == value for value in range(outputs)]).float()
    item: dict[str, Any] = {"image": torch.zeros(3, 17, 17), "label": label}
    blamed, found = "", ""
    try:
        transforms = [(name, parsed(parser, name, dict)) for name in OF_LABELS]
        loss = parsed(parser, "loss")
    except RuntimeError:
        return []  # reported where a site builds the component
    for name, transform in transforms:
        item = transform(item)
        values = sorted(set(torch.as_tensor(item["label"]).flatten().tolist()))
        if not blamed and outputs == 1 and values != [0, 1, IGNORE]:
            blamed, found = name, f"a component after which a label of 0, 1 and {IGNORE} has {_listed(values)}"
        elif not blamed and not without_label(item["label"]).any():
            blamed, found = name, "a component after which every pixel has a class"
    if not blamed:
        blamed, found = "loss", _learned_from(loss, item["label"], outputs)
    if not found:
        return []
    expected = f"a component that leaves out pixels of {IGNORE}, which have no label, as images#weak_labels is true"
    hint = "take the variant weak_labels or one built on it, whose components do, or masks and images#weak_labels false"
    return [Problem(f"train.json -> {blamed}", found=found, expected=expected, hint=hint)]


def _learned_from(loss: Any, label: torch.Tensor, outputs: int) -> str:
    """How a loss takes unlabelled pixels for labelled ones; empty where no gradient reaches them."""
    logits = torch.zeros(1, outputs, *label.shape[1:], requires_grad=True)
    try:
        loss(logits, label[None]).backward()
    except (ValueError, IndexError, RuntimeError) as error:
        return f"a loss that does not take them ({error})"
    reached = logits.grad is not None and logits.grad[:, :, without_label(label)[0]].any()
    return f"{type(loss).__name__}, which learns from them" if reached else ""


def _listed(values: Sequence[float]) -> str:
    shown = ", ".join(f"{value:g}" for value in values[:4])
    return f"{shown}, ..." if len(values) > 4 else shown


def _batches(parser: Any) -> dict[str, int]:
    """Images of each training batch, by the option where that decides it and else by id."""
    option, found = parsed(parser, "batch_size"), dict[str, int]()
    for name in BATCHES:
        images = parsed(parser, name)
        if isinstance(images, int):
            found["batch_size" if images == option else name] = images
    return found


def _require_alike(built: list[BuiltNetwork]) -> None:
    """Refuses networks that cannot be averaged; it names two sites and the first tensor in which theirs differ."""
    first, *others = built
    for other in others:
        key = next((k for k in [*first.shapes, *other.shapes] if first.shapes.get(k) != other.shapes.get(k)), None)
        if key is not None:
            sides = ", ".join(_shape_of(each, key) for each in (first, other))
            expected = "one network at all sites: FedAvg averages weights"
            hint = (
                "give all sites one network, or use --variant heterogeneous, which lets unlike networks learn together"
            )
            raise Refused([Problem("sites", found=f"{key}: {sides}", expected=expected, hint=hint)])


def _shape_of(one: BuiltNetwork, key: str) -> str:
    shape = f"shape {list(one.shapes[key])}" if key in one.shapes else "no such tensor"
    return f"{one.site} ({one.network}) has {shape}"
