"""The allow-list of a site: kinds, names and shapes of tensors that may leave; scores of few images are withheld."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set, Sized
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import RandomSampler, SequentialSampler, Subset

from samfed_monai.bundle.images import SplitDataset
from samfed_monai.config.parse import parsed
from samfed_monai.core.errors import Problem
from samfed_monai.handlers.unlabelled_stream import EndlessSampler
from samfed_monai.metrics.quality import PREFIX
from samfed_monai.networks.key_patterns import network_split
from samfed_monai.privacy.rules import Privacy, forbidden_problems, too_few_problem
from samfed_monai.protocol.message import Kind, Message, MessageRefused
from samfed_monai.protocol.statistics import Statistic
from samfed_monai.protocol.strategy import WORDS, trained_weights

if TYPE_CHECKING:
    from samfed_monai.config.method import Method
    from samfed_monai.handlers.images_seen import SeenCounts


#: Metrics of a site's work, not of its images.
EFFORT = frozenset({"seconds", "iterations", "releases"})
#: The mean expected Dice of a model's masks, which needs no labels, and its number of images.
EXPECTED = frozenset({"expected_dice", "expected_images"})
#: Key in a reply whose statistics were withheld; its value is the number of images that they would have needed.
WITHHELD = "withheld"
OWN_NETWORK = "0"
"""Value of ``withheld`` with differential privacy, for scores of a network that stays at its site, fully or in part."""

NO_IMAGES = "no images"
"""Reason why a site without masks has no scores."""


@dataclass(frozen=True)
class Allowed:
    """An allow-list of tensors.

    Args:
        like: names, shapes and dtypes by kind of message; a missing kind may not leave. Soft masks must equal these to
            the bit. Messages without tensors (``metrics``) need no entry.
        learned: names of the trained parameters; the rest of the state is frozen, or running statistics and counters.
        batch: number of images in the smallest batch that the site trains on; ``None`` if unknown.
        momentum: the largest weight of one batch in a shared running statistic; 0 without any.
        statistic: the image-derived statistic that the site measures for others; ``None`` for none.
        seen: own images of the last training, from :class:`.ImagesSeen`; ``None`` if they were not counted.
        keeps_part: whether a trained network, or a part of it, stays at the site, which then evaluates its own network.
    """

    like: Mapping[Kind, Mapping[str, Tensor]] = field(default_factory=dict)
    learned: frozenset[str] = frozenset()
    batch: int | None = None
    momentum: float = 0.0
    statistic: Statistic | None = None
    seen: SeenCounts | None = None
    keeps_part: bool = False


def allowed_weights(network: nn.Module, *, personal: Sequence[str] = ()) -> Allowed:
    """Allows the shared tensors of a network: those of its ``key_split()``, without the personal ones.

    Args:
        network: the site's network. Without ``key_split()`` its whole state dict is shared; with it, frozen and
            personal tensors never leave.
        personal: patterns of names that never leave (:func:`network_split`).

    Raises:
        Refused: a pattern that matches nothing.
    """
    from monai.networks.utils import get_state_dict

    state = get_state_dict(network)
    shared = {name: state[name] for name in network_split(network, personal).shared}
    learned = frozenset(trained_weights(network))  # no noise in frozen layers: no training would remove it
    return Allowed({Kind.WEIGHTS: shared}, learned=learned, momentum=_largest_momentum(network, shared))


def _largest_momentum(network: nn.Module, shared: Mapping[str, Tensor]) -> float:
    """Returns 1 for an average over all batches, which may be a single one, and for an unknown momentum."""
    momenta = [0.0]
    for prefix, module in network.named_modules():
        if f"{prefix}.running_mean".removeprefix("module.").lstrip(".") in shared:
            momentum = getattr(module, "momentum", None)
            momenta.append(abs(float(momentum)) if isinstance(momentum, (int, float)) else 1.0)
    return max(momenta)


def _smallest_batch(trainer: Any) -> int | None:
    """Returns the number of different images in the smallest batch of a trainer's loader or its handlers' loaders.

    The loaders are read from the trainer in use, not from the configuration: a plan may name others.
    """
    events = trainer._event_handlers  # Ignite has no public access; an error is better than missing a loader
    handlers = [getattr(handler, "__self__", handler) for each in events.values() for handler, *_ in each]
    loaders = [trainer.data_loader, *(handler.loader for handler in handlers if hasattr(handler, "loader"))]
    sizes = [_different_images(loader) for loader in loaders]
    return None if None in sizes else min(size for size in sizes if size is not None)


def _different_images(loader: Any) -> int | None:
    """Returns the number of different images in the smallest batch; ``None`` if unknown."""
    size: Any = getattr(loader, "batch_size", None)
    sampler: Any = getattr(loader, "sampler", None)
    if not isinstance(size, int):
        return None
    if type(sampler) is EndlessSampler:  # batches are always full
        return min(size, _count_different(sampler.dataset) if sampler.indices is None else len(set(sampler.indices)))
    if type(sampler) not in (range, SequentialSampler, RandomSampler) or getattr(sampler, "replacement", False):
        return None  # it may repeat images
    rest = 0 if getattr(loader, "drop_last", False) else len(sampler) % size
    return min(rest or size, _count_different(loader.dataset) if hasattr(loader, "dataset") else size)


def _count_different(dataset: Sized) -> int:
    return dataset.different_images() if isinstance(dataset, SplitDataset) else len(dataset)


def seen_problems(allowed: Allowed, least_seen: int, least_images: int, iterations: float) -> list[Problem]:
    """Returns why the result of a round's training may not leave: it used too few different images.

    Args:
        allowed: the allow-list, with the images that were used.
        least_seen: the site's own minimum number of different images in a round.
        least_images: the plan's minimum; it applies if images were repeated before that number was reached.
        iterations: iterations of the round, for a client that does not count images.
    """
    least, where_set, images_seen = least_seen, "the site file", allowed.seen
    seen = int(iterations) * (allowed.batch or 1) if images_seen is None else len(images_seen.images)
    if images_seen is not None and images_seen.hashed and images_seen.repeated and least_images > least_seen:
        least, where_set = least_images, "privacy#least_images"
    if seen >= least or (images_seen is None and not seen):  # a round without training reveals nothing new
        return []
    expected = f"at least {least} images in a round of training (set in {where_set})"
    found = f"{seen}{' different' if images_seen is not None else ''}"
    return [Problem("round", found, expected, "increase local_steps or batch_size")]


def statistics_problems(allowed: Allowed, least_images: int) -> list[Problem]:
    """Returns why running statistics may not leave: the share of a single image in them would be too large.

    A layer's running mean is ``(1 - momentum)`` times its previous value plus ``momentum`` times the mean of the last
    batch. An image in a batch of B has a share of ``momentum / B``, so at least ``B / momentum`` images contribute.
    With momentum 1 and batches of one, a plan would make the statistic that of one image.

    Args:
        allowed: the allow-list.
        least_images: see :class:`Privacy`.
    """
    batch = 1 if allowed.batch is None else allowed.batch
    images_behind = batch / allowed.momentum if allowed.momentum else least_images
    if Kind.WEIGHTS not in allowed.like or images_behind >= least_images:
        return []
    expected = f"averages over at least {least_images} images (privacy#least_images)"
    hint = "increase batch_size, or decrease the momentum of normalisation layers"
    return [Problem("running statistics", f"averages over {images_behind:.3g}", expected, hint)]


def allowed_of(client: Any) -> Allowed:
    """Returns what a :class:`SamFedAlgo` may send: the tensors of its client algorithm, if any, else the network's.

    A request cannot extend it: a site with a client algorithm does not send its network even if the server requests it.

    Args:
        client: an initialized client; one that only evaluates may send no tensors.
    """
    if getattr(client, "trainer", None) is None:
        return Allowed()
    network, seen = client.trainer.network, getattr(client, "trained_on", None)
    algorithm = getattr(getattr(client, "own", None), "algorithm", None)
    personal = parsed(getattr(client.train_workflow, "parser", None), "personal") or ()
    weights = replace(
        allowed_weights(network, personal=personal),
        batch=_smallest_batch(client.trainer),
        statistic=getattr(client, "statistic", None),
        seen=seen.least() if seen is not None else None,
        keeps_part=algorithm is not None or bool(network_split(network, personal).personal),
    )
    if algorithm is None:
        return weights
    like = {kind: weights.like[kind] if kind == Kind.WEIGHTS else each for kind, each in algorithm.may_share().items()}
    return replace(weights, like=like)


def tensor_problems(reply: Message, allowed: Allowed) -> list[Problem]:
    """Returns why the tensors of ``reply`` may not leave: kind, names, shapes, dtypes or values.

    The text of a problem may itself leave, so it has no values, and no names that are not on the list.

    Args:
        reply: the outgoing message.
        allowed: the allow-list.
    """
    if reply.kind not in list(Kind):
        return [Problem("message -> kind", "an unknown kind", "a kind on the allow-list")]
    if not reply.tensors and reply.kind == Kind.METRICS:
        return []
    kind = Kind(reply.kind)
    if (like := allowed.like.get(kind)) is None:
        kinds = ", ".join(sorted({each.value for each in (*map(Kind, allowed.like), Kind.METRICS)}))
        return [Problem("message -> kind", "a kind that may not leave the site", f"one of {kinds}")]
    return list(_differences(reply.tensors, like, "message -> tensors", exact=kind == Kind.SOFT_MASKS))


def _differences(
    tensors: Mapping[str, Any], like: Mapping[str, Tensor], where: str, *, exact: bool = False
) -> Iterator[Problem]:
    if unknown := len(tensors.keys() - like):
        yield Problem(where, f"{unknown} in addition", f"only the {len(like)} tensors on the allow-list")
    if missing := len(like.keys() - tensors):
        yield Problem(where, f"{missing} missing", "all of the allow-list")
    for name in sorted(like.keys() & tensors):
        if difference := _difference(tensors[name], like[name], exact=exact):
            yield Problem(f"message -> {name}", *difference)


def _difference(tensor: Any, allowed: Tensor, *, exact: bool) -> tuple[str, str] | None:
    """Returns what was found and expected of a tensor that differs from the allowed one."""
    if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided:
        return "another type", "a plain tensor"
    if tensor.shape != allowed.shape:
        return "another shape", f"shape {tuple(allowed.shape)}"
    if tensor.dtype != allowed.dtype:
        return "another dtype", str(allowed.dtype)
    if exact and not torch.equal(tensor.cpu(), allowed.cpu()):
        return "other values", "the site's own masks of the public images"
    return None


def undeclared_parts(reply: Message, method: Method | None) -> list[Problem]:
    """Returns the parts of ``reply`` that the method's declaration (``leaves_site``) does not allow to leave.

    Args:
        reply: the outgoing message, of a known kind.
        method: see :func:`samfed_monai.config.variants.resolved_method`; for ``None`` and for a variant without a block
            ``_method``, only the allow-list applies.
    """
    if method is None or method.leaves_site is None:
        return []
    parts = [WORDS.get(Kind(reply.kind), Kind(reply.kind).value)] if reply.tensors else []
    parts += ["scores"] if reply.metrics.keys() - EFFORT else []
    expected = f"what {method.name} declares: {', '.join(method.leaves_site) or 'nothing'}"
    hint = "add it there if the method should send it"
    return [Problem(method.where, part, expected, hint) for part in parts if part not in method.leaves_site]


def statistic_problems(
    statistics: Mapping[str, Tensor], requested: str | None, allowed: Allowed, privacy: Privacy, method: Method | None
) -> list[Problem]:
    """Returns why an image-derived statistic, which is sent beside weights, may not leave.

    Args:
        statistics: outgoing tensors by name without prefix.
        requested: the kind that the request names; ``None`` for none.
        allowed: the allow-list, with the statistic that the site measures.
        privacy: the settings: which statistics may leave, and of how many images.
        method: see :func:`undeclared_parts`.
    """
    measured, where = allowed.statistic, "message -> statistics"
    if not statistics:
        return []
    if requested is None or measured is None or measured.kind.value != requested:
        found = "a statistic that was not requested" if requested is None else "a kind that this site does not measure"
        return [Problem(where, found, "the statistic that the request names and the bundle measures")]
    if forbidden := forbidden_problems(measured.kind, privacy, method):
        return forbidden
    problems, rule = list(_differences(statistics, measured.like(), where)), privacy.rule(measured.kind)
    if rule is not None and measured.images(rule.least_images) < rule.least_images:
        problems.append(too_few_problem(where, f"entries from at least {rule.least_images} images each"))
    return problems


Records = Sequence[Mapping[str, Any]]


def require_public_images(algorithm: Any, public: Callable[[], Records]) -> None:
    """Refuses a client algorithm that would make masks of images other than the site's public ones, or reorders them.

    The release filter takes its allow-list from the client algorithm; this check uses the site's own list.

    Args:
        algorithm: the client's client algorithm; without a ``predictor`` it makes no masks.
        public: returns the records of the site's public images (:func:`samfed_monai.data.load_records`).

    Raises:
        MessageRefused: another image, the same images in another order, or a dataset whose records cannot be read.
    """
    predictor = getattr(algorithm, "predictor", None)
    if predictor is None:
        return
    public_images = [_identity(record) for record in public()]
    used_images = [_identity(record) for record in _records(predictor.dataset)]
    unknown, remaining = len([image for image in used_images if image not in public_images]), iter(public_images)
    # `in` advances the iterator: the used images must be a subsequence
    if unknown or not all(image in remaining for image in used_images):
        found = f"{unknown} other images" if unknown else "another order"
        raise _other_images(found, "only this site's public images, in order", "the data of ")


def _records(dataset: Any) -> Records:
    if isinstance(dataset, Subset):
        whole = _records(dataset.dataset)
        return [whole[index] for index in dataset.indices]
    records: Any = getattr(dataset, "data", None)
    if not isinstance(records, list) or not all(isinstance(record, Mapping) for record in records):
        raise _other_images(f"a {type(dataset).__name__}", "a dataset with a list of records")
    return records


def _other_images(found: str, expected: str, what: str = "") -> MessageRefused:
    hint = f"do not override {what}client_algorithm#plain"
    return MessageRefused([Problem("images of the exchanged masks", found, expected, hint)])


def _identity(record: Mapping[str, Any]) -> tuple[Any, Any]:
    image = record.get("image")
    return (image if isinstance(image, str) else None), record.get("image_sha256")


def withhold_small(message: Message, least_images: int) -> Message:
    """Returns ``message`` without statistics of fewer than ``least_images`` images.

    With fewer images in total, all scores and the count are removed, and ``withheld`` is added unless there are no
    images at all; the expected Dice of a site without labels is kept if it is of enough images. Tensors learned from
    fewer images are refused. With enough images in total, and few meaning 1 to ``least_images - 1``, it removes:

    - counts of empty masks in few images (three images without a lesion are three images);
    - all scores but the mean Dice, if few images have no empty mask: the others have a Dice of 1 or 0, and from their
      number and the mean that of the few follows;
    - the scores of a class that few images contain, and the number of images with a class that few images lack;
    - scores of few volumes, of a class that few volumes contain or lack, and HD95 if few volumes have one, or lack one;
    - scores of groups of images (:mod:`samfed_monai.metrics.quality`), if one of the groups is too small.

    Raises:
        MessageRefused: tensors of fewer than ``least_images`` images.
    """
    few_expected = EXPECTED if message.metrics.get("expected_images", 0) < least_images else frozenset()
    if message.n >= least_images:
        return _drop(message, _metrics_of_few(message, least_images) | few_expected)
    if message.tensors:
        raise MessageRefused([too_few_problem("message -> n", f"tensors learned from at least {least_images} images")])
    if message.kind == Kind.METRICS and (message.n or (message.metrics.keys() - EFFORT.union(EXPECTED))):
        return without_scores(message, str(least_images))
    return _drop(message, few_expected)


def without_scores(message: Message, word: str) -> Message:
    """Returns ``message`` without scores and their count, with ``withheld`` set to ``word`` if there are images."""
    effort = {name: value for name, value in message.metrics.items() if name in EFFORT}
    return replace(message, n=0, metrics=effort, extra={**message.extra, **({WITHHELD: word} if message.n else {})})


def _metrics_of_few(message: Message, least: int) -> Set[str]:
    """Returns the names of the metrics of fewer than ``least`` images, in a message of at least so many."""
    empty = _with_prefix(message.metrics, "empty_")
    few_empty = {name for name, value in empty.items() if _is_few(value, least)}
    with_object = message.n - sum(empty.values())
    known_with_object = with_object + sum(empty[name] for name in few_empty)
    if _is_few(known_with_object, least) or _is_few(with_object, least):  # Dice and IoU together also reveal these
        return message.metrics.keys() - EFFORT.union(EXPECTED, {"dice"})
    few = {f"empty_{name}" for name in few_empty}
    few.update(_class_scores_of_few(message, least), _volume_scores_of_few(message.metrics, least))
    if any(value < least for value in _with_prefix(message.metrics, f"{PREFIX}images_").values()):
        few |= {name for name in message.metrics if name.startswith(PREFIX)}
    return few


def _with_prefix(metrics: Mapping[str, float], prefix: str) -> dict[str, float]:
    return {name.removeprefix(prefix): value for name, value in metrics.items() if name.startswith(prefix)}


def _is_few(count: float, least: int) -> bool:
    return 0 < count < least


def _class_scores_of_few(message: Message, least: int) -> Iterator[str]:
    for number, value in _with_prefix(message.metrics, "images_class_").items():
        if _is_few(value, least):
            yield from (f"{score}_class_{number}" for score in ("dice", "iou", "hd95", "images"))
        elif _is_few(message.n - value, least):
            yield f"images_class_{number}"


def _volume_scores_of_few(metrics: Mapping[str, float], least: int) -> Iterator[str]:
    for which, value in _with_prefix(metrics, "volume_n").items():
        measured = metrics.get(f"volume_measured{which}", 0)
        if _is_few(value, least) or _is_few(metrics.get("volume_n", 0) - value, least):
            yield from (name for name in metrics if name.startswith("volume_") and name.endswith(which))
        elif _is_few(measured, least) or _is_few(value - measured, least):  # a volume without HD95 has a Dice of 0
            yield from (f"volume_hd95_mm{which}", f"volume_measured{which}")


def _drop(message: Message, names: Set[str]) -> Message:
    if not names & message.metrics.keys():
        return message
    return replace(message, metrics={name: value for name, value in message.metrics.items() if name not in names})


def withheld_reason(message: Message) -> str | None:
    """Returns why a reply has no statistics: ``withheld: fewer than 5 images``, ``no images``; ``None`` if it has."""
    value = message.extra.get(WITHHELD)
    if value == OWN_NETWORK:
        return "withheld: scores of the site's own network, which has no noise"
    if value is not None:
        return f"withheld: fewer than {value} images"
    return None if message.n or message.metrics.keys() - EFFORT.union(EXPECTED) else NO_IMAGES
