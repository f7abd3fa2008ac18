"""The message between server and sites: its fields, the checks on arrival, and its bytes.

Soft masks are sent deflated, as differences between neighbouring pixels (they are smooth). Their shapes are in the
header: nothing is inflated beyond these shapes, and these may not exceed the reader's limit.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from samfed_monai.core import tensor_file
from samfed_monai.core.errors import Problem, Problems, Refused
from samfed_monai.core.io import all_finite, check_tensors, parse_json
from samfed_monai.core.validators import require

VERSION = 1
#: A site that claims more images than this has a bug or bad intentions (ImageNet-21k has 14 million).
MAX_COUNT = 10_000_000

_FRACTION, _COUNT, _ANY = (0.0, 1.0), (0, MAX_COUNT), (-1e9, 1e9)
#: Numbers a site may send, with their ranges: other names cannot leave the site, and no value lets a site decide the
#: best round by itself or overflows a mean.
METRIC_RANGES: Mapping[str, tuple[float, float]] = {
    **dict.fromkeys(("dice", "iou", "sensitivity", "precision", "area", "expected_dice"), _FRACTION),
    **dict.fromkeys(("empty_both", "empty_prediction", "empty_label", "expected_images"), _COUNT),
    "hd95": (0.0, 1e6),
    "loss": _ANY,
    "seconds": (0.0, 1e9),
    **dict.fromkeys(("iterations", "releases"), (0, 1e9)),
}
METRIC_NAMES = frozenset(METRIC_RANGES)
#: Means of loss terms are named by the bundle's JSON; the pattern allows no paths, dots or capitals.
TERM_NAME = re.compile(r"term_[a-z][a-z0-9_]{0,39}")
#: Scores of one of several classes, identified by its number, and the number of images that show it.
CLASS_METRIC = re.compile(r"(dice|iou|hd95|images)_class_([1-9]|1[0-4])")
#: Scores of whole volumes, of all classes or of one, and the number of volumes.
VOLUME_METRIC = re.compile(r"volume_(dice|hd95_mm|n|measured)(_class_([1-9]|1[0-4]))?")
#: Groups of labelled images to calibrate a model's estimates (:mod:`samfed_monai.metrics.quality`).
QUALITY_METRIC = re.compile(r"quality_(images|estimate|dice|margin)_([0-9]|1[0-5])")
#: Maximum number of loss terms in one message. Each name is a column of the run's table: without a limit one site
#: could add tens of thousands in every round.
MAX_TERMS = 64
_HASH = re.compile("[0-9a-f]{64}")
#: Word with the checksum of weights that a message refers to without containing them (:class:`.SentWeights`).
HELD = "held"
#: Word with the form of a compressed difference (:mod:`.compression`).
COMPRESSION = "compression"
#: Word with the image-derived statistic that a server asks for (:mod:`.statistics`).
STATISTICS = "statistics"
#: Words the server may send, with the patterns of their values.
EXTRA_WORDS = {
    "split": re.compile("validation|test"),
    "withheld": re.compile("[0-9]{1,6}"),  # the only word of a site: it left out statistics of fewer images than this
    "model": re.compile("initial|current|best|last|teacher"),
    # use of the tensors: replace the site's weights with them, distil from them, or keep the site's own network
    "purpose": re.compile("replace|distil|keep"),
    HELD: re.compile("[0-9a-f]{32}"),
    COMPRESSION: re.compile("bfloat16|int8|[1-9][0-9]{0,3}"),
    STATISTICS: re.compile("spectrum|features|graph"),
    "public": _HASH,  # of the public set as networks see it: images, masks at the evaluation size, order
    "public_list": _HASH,  # of the public part of the data list
    "list": _HASH,  # of the site's own part of the data list
    "plan": _HASH,  # of the plan and of the bundle's files
    "version": re.compile(r"[0-9A-Za-z.+]{1,40}"),  # of this package
    "sam": _HASH,  # of the checkpoint of the teacher's SAM
    "base_sam": _HASH,  # of the checkpoint that this site's own network is built on
    "teacher": _HASH,  # of the teacher: checkpoint, adapter, size, views
    "adapter": _HASH,  # of the adapter's file, which is in the message
}


def metric_range(name: Any) -> tuple[float, float] | None:
    """Range of a metric by its name; ``None`` for a name that may not leave a site."""
    if name in METRIC_RANGES:
        return METRIC_RANGES[name]
    if not isinstance(name, str):
        return None
    class_match = CLASS_METRIC.fullmatch(name)
    if class_match:
        return _COUNT if class_match[1] == "images" else METRIC_RANGES[class_match[1]]
    if volume_match := VOLUME_METRIC.fullmatch(name):
        return {"dice": _FRACTION, "hd95_mm": METRIC_RANGES["hd95"]}.get(volume_match[1], _COUNT)
    if group_match := QUALITY_METRIC.fullmatch(name):
        return {"images": _COUNT, "margin": (-20.0, 20.0)}.get(group_match[1], _FRACTION)
    return _ANY if TERM_NAME.fullmatch(name) else None


class Kind(str, Enum):
    """Kind of a :class:`Message`'s tensors."""

    WEIGHTS = "weights"
    STEP = "step"
    SOFT_MASKS = "soft_masks"
    PROTOTYPES = "prototypes"
    ADAPTER = "adapter"
    SECURE = "secure"
    METRICS = "metrics"


class MessageRefused(Refused):
    """A message that failed its check; its text has only tensor names and numbers, so it may be sent."""


def message_refused(where: str, found: str, expected: str, hint: str = "") -> MessageRefused:
    """Returns a refusal with one problem."""
    return MessageRefused([Problem(where, found, expected, hint)])


@dataclass
class Message:
    """One message, up (from a site) or down (to a site).

    Args:
        kind: kind of ``tensors``; ``metrics`` has none. A ``step`` is a compressed difference from weights that both
            ends have (:class:`.Compression`). An ``adapter`` is only sent down: the file's bytes as a ``uint8`` tensor
            ``adapter``, with its SHA-256 under the same name in ``extra``.
        site: the site it comes from or goes to.
        round: round it belongs to, from 0.
        rounds: number of rounds of the run.
        seed: the run's seed; sites derive theirs from (seed, site, round).
        n: number of images behind the message (private training images, or images evaluated); 0 on the way down.
        tensors: names to tensors, on the CPU; weights by their state-dict names.
        metrics: finite numbers under allow-listed names (:data:`METRIC_NAMES`, ``term_<name>``, or
            ``dice_class_<number>`` and the like of :data:`CLASS_METRIC` and :data:`VOLUME_METRIC`).
        extra: allow-listed words of :data:`EXTRA_WORDS`.
        version: format of the message.

    It does not copy tensors, and it does not check itself on creation: call :meth:`check` on receipt. Soft masks are
    deflated once: do not change their content after that.
    """

    kind: Kind
    site: str
    round: int
    rounds: int
    seed: int = 0
    n: int = 0
    tensors: dict[str, Tensor] = field(default_factory=dict, repr=False)
    metrics: dict[str, float] = field(default_factory=dict)
    extra: dict[str, str] = field(default_factory=dict)
    version: int = VERSION

    def header(self) -> dict[str, Any]:
        """All fields except the tensors, as JSON content."""
        fields = {name: getattr(self, name) for name in ("version", "site", "round", "rounds", "seed", "n")}
        return {**fields, "kind": str(Kind(self.kind).value), "metrics": self.metrics, "extra": self.extra}

    def check(
        self, *, up: bool, like: Mapping[str, Tensor] | None = None, site: str | None = None, round: int | None = None
    ) -> None:
        """Refuses an invalid message.

        Args:
            up: True for a message from a site, which must have a count and may contain only tensors that the server
                asked for; False for one from the server.
            like: expected names, shapes and dtypes; upward tensors without ``like`` are refused.
            site: the known sender.
            round: the current round.

        Raises:
            MessageRefused: every problem at once.
        """
        problems = Problems()
        if self.version != VERSION:
            problems.add("message -> version", found=repr(self.version), expected=str(VERSION), hint="update both ends")
        if site is not None and self.site != site:
            problems.add("message -> site", found="another site's name", expected="the sender's own name")
        if round is not None and self.round != round:
            problems.add("message -> round", found=f"round {_number(self.round)}", expected=f"round {round}")
        if up:
            least = 0 if self.kind == Kind.METRICS else 1
            if type(self.n) is not int or not least <= self.n <= MAX_COUNT:
                problems.add("message -> n", _number(self.n), f"a whole number from {least} to {MAX_COUNT}")
            if self.tensors and like is None:
                problems.add("message -> tensors", found="tensors that were not requested", expected="numbers only")
        problems.extend(_metric_problems(self.metrics))
        problems.extend(_word_problems(self.extra))
        problems.extend(_tensor_problems(self.tensors, like))
        require(problems, error=MessageRefused)


# refused names and values are not repeated: they might be private
def _metric_problems(metrics: Mapping[Any, Any]) -> Iterator[Problem]:
    for name, value in metrics.items():
        allowed = metric_range(name)
        if allowed is None:
            yield Problem("message -> metrics", "a name that is not on the list", _one_of(METRIC_NAMES))
        elif type(value) not in (int, float) or value != value or abs(value) == math.inf:
            yield Problem(f"message -> metrics -> {name}", _number(value), "a finite number")
        elif not allowed[0] <= value <= allowed[1]:
            expected = f"a number from {allowed[0]:g} to {allowed[1]:g}"
            yield Problem(f"message -> metrics -> {name}", _number(value), expected)
    terms = sum(isinstance(name, str) and TERM_NAME.fullmatch(name) is not None for name in metrics)
    if terms > MAX_TERMS:
        yield Problem("message -> metrics", f"{terms} terms", f"at most {MAX_TERMS} terms")


def _word_problems(words: Mapping[Any, Any]) -> Iterator[Problem]:
    for name, value in words.items():
        if name not in EXTRA_WORDS:
            yield Problem("message -> extra", "a name that is not on the list", _one_of(EXTRA_WORDS))
        elif not isinstance(value, str) or not EXTRA_WORDS[name].fullmatch(value):
            yield Problem(f"message -> extra -> {name}", "another value", EXTRA_WORDS[name].pattern)


def _tensor_problems(tensors: Mapping[str, Tensor], like: Mapping[str, Tensor] | None) -> Iterator[Problem]:
    if like is None:
        if not all(map(all_finite, tensors.values())):
            yield Problem("message -> tensors", "NaN or infinity", "finite values")
        return
    # eval mode takes the root of a variance: one such site would make every model NaN; and a counter of -1 makes the
    # next batch of a norm without momentum divide by 0
    for part, what in (("running_var", "variances"), ("num_batches_tracked", "counters")):
        comparable = {name for name, tensor in tensors.items() if name in like and tensor.dtype == like[name].dtype}
        negative = sum(bool((tensors[name] < 0).any()) for name in comparable if name.rpartition(".")[2] == part)
        if negative:
            yield Problem("message -> tensors", f"{negative} with negative values", f"non-negative {what}")
    if unknown := len(tensors.keys() - like.keys()):
        expected = "only the shared tensors of this network"
        hint = "give both ends the same bundle, network and personal"
        yield Problem("message -> tensors", f"{unknown} with unknown names", expected, hint)
    known = {name: tensor for name, tensor in tensors.items() if name in like}
    yield from check_tensors(known, like=like, where="message")


def _one_of(known: Any) -> str:
    return "one of " + ", ".join(sorted(known))


_MOST_PRINTED = 10**20  # larger whole numbers are not printed: they may have thousands of digits


def _number(value: Any) -> str:
    if type(value) not in (int, float):
        return type(value).__name__
    if type(value) is float or abs(value) < _MOST_PRINTED:
        return repr(value)
    return f"more than {_MOST_PRINTED:.0e}" if value > 0 else f"less than -{_MOST_PRINTED:.0e}"


#: Largest message that is decoded by default: ten times SAM ViT-B's 375 MB.
MAX_BYTES = 4 * 1024**3
#: Longest header that is parsed: names, shapes and types of some 20,000 tensors. A byte of JSON takes
#: many in memory once parsed.
MAX_HEADER = 4 * 1024**2
_KEY = "samfed"
_SHAPES = "shapes"
_LEVEL = 1  # of deflate; on a network's masks 6 gains 15 % for nine times the time
_MAX_SIDES = 8
_FORMAT_ERRORS = (AttributeError, ValueError, KeyError, TypeError, OverflowError, RecursionError, zlib.error)
_HEADER_TYPES: dict[str, type] = dict.fromkeys(("version", "round", "rounds", "seed", "n"), int)
_HEADER_TYPES |= {"kind": str, "site": str, "metrics": dict, "extra": dict}
_DEFLATED = WeakTensorKeyDictionary()  # soft masks to their bytes, as long as these masks exist


def wire_size(message: Message) -> int:
    """Bytes of ``to_bytes(message)``, computed without serialising weights."""
    return tensor_file.size(*_packed(message))


def to_bytes(message: Message) -> bytes:
    """Returns the message as bytes: a valid safetensors file."""
    return b"".join(tensor_file.pieces(*_packed(message)))


def from_bytes(payload: bytes, *, max_bytes: int = MAX_BYTES, max_inflated: Callable[[], int] | None = None) -> Message:
    """Reads a message; its content must still be checked with :meth:`Message.check`.

    Args:
        payload: the received bytes.
        max_bytes: longer payloads are refused before any decoding.
        max_inflated: returns the maximum number of bytes of inflated soft masks; called only for a message with soft
            masks. ``None`` is ``max_bytes``.

    Raises:
        MessageRefused: the message or its header is too long; it is not safetensors (a pickle, for instance), has
            another format's header, or tensors of a type that no message has.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    if len(payload) > max_bytes:
        raise message_refused("message", f"{len(payload)} bytes", f"at most {max_bytes} bytes")
    try:
        header, shapes = _header(payload)
        tensors = load(payload)
        if shapes is not None:
            _check_shapes(shapes, tensors, max_bytes if max_inflated is None else max_inflated())
            tensors = {name: _inflate(tensor, shapes[name]) for name, tensor in tensors.items()}
    except MessageRefused:
        raise
    except (*_FORMAT_ERRORS, SafetensorError) as error:
        found = f"another format ({type(error).__name__})"
        raise message_refused("message", found, "safetensors with a samfed header") from None
    unknown = {tensor.dtype for tensor in tensors.values()} - tensor_file.DTYPES.keys()
    if unknown:
        expected = f"one of {', '.join(map(str, tensor_file.DTYPES))}"
        raise message_refused("message -> tensors", ", ".join(sorted(map(str, unknown))), expected)
    _check_header(header)
    header["kind"] = Kind(header["kind"])
    if (shapes is not None) != (header["kind"] == Kind.SOFT_MASKS):
        found = "deflated tensors" if shapes is not None else "plain tensors"
        raise message_refused("message -> tensors", found, "deflated soft masks, or plain tensors of another kind")
    return Message(tensors=tensors, **header)


def _packed(message: Message) -> tuple[Mapping[str, Tensor], dict[str, str]]:
    metadata = {_KEY: json.dumps(message.header(), sort_keys=True, allow_nan=False)}
    if message.kind != Kind.SOFT_MASKS:
        return message.tensors, metadata
    metadata[_SHAPES] = json.dumps({name: list(tensor.shape) for name, tensor in message.tensors.items()})
    for tensor in message.tensors.values():
        if tensor not in _DEFLATED:
            _DEFLATED[tensor] = _deflate(tensor)
    return {name: _DEFLATED[tensor] for name, tensor in message.tensors.items()}, metadata


def _deflate(masks: Tensor) -> Tensor:
    if masks.dtype != torch.uint8:
        raise message_refused("message -> tensors", str(masks.dtype), str(torch.uint8))
    pixels = masks.detach().cpu().numpy()
    for axis in range(-min(pixels.ndim, 2), 0):  # modulo 256, so that nothing is lost
        pixels = np.diff(pixels, axis=axis, prepend=np.uint8(0))
    return torch.frombuffer(bytearray(zlib.compress(np.ascontiguousarray(pixels).data, _LEVEL)), dtype=torch.uint8)


def _inflate(packed: Tensor, shape: list[int]) -> Tensor:
    size, stream = math.prod(shape), zlib.decompressobj()
    content = stream.decompress(packed.numpy().tobytes(), size + 1)
    if len(content) != size or not stream.eof or stream.unused_data:
        raise ValueError("length")
    pixels = np.frombuffer(content, dtype=np.uint8).reshape(shape)
    for axis in range(-min(pixels.ndim, 2), 0):
        pixels = np.cumsum(pixels, axis=axis, dtype=np.uint8)
    return torch.from_numpy(pixels.copy() if not pixels.flags.writeable else pixels)


def _check_shapes(shapes: Any, tensors: Mapping[str, Tensor], max_bytes: int) -> None:
    if not isinstance(shapes, dict) or shapes.keys() != tensors.keys():
        raise ValueError("names")
    for shape in shapes.values():
        is_list_of_sizes = isinstance(shape, list) and all(type(side) is int and side >= 0 for side in shape)
        if not is_list_of_sizes or len(shape) > _MAX_SIDES:
            raise ValueError("shape")
    size = sum(math.prod(shape) for shape in shapes.values())
    if size > max_bytes:
        raise message_refused("message -> tensors", f"{size} bytes once inflated", f"at most {max_bytes} bytes")
    if any(tensor.dtype != torch.uint8 for tensor in tensors.values()):
        raise ValueError("dtype")


def _header(payload: bytes) -> tuple[Any, Any]:
    length = int.from_bytes(payload[:8], "little")
    if length > len(payload) - 8:
        raise ValueError("header length")
    if length > MAX_HEADER:
        raise message_refused("message", f"a header of {length} bytes", f"a header of at most {MAX_HEADER} bytes")
    metadata = parse_json(payload[8 : 8 + length])["__metadata__"]
    shapes = metadata.get(_SHAPES)
    return parse_json(metadata[_KEY]), None if shapes is None else parse_json(shapes)


def _check_header(header: Any) -> None:
    if not isinstance(header, dict) or header.keys() != _HEADER_TYPES.keys():
        raise message_refused("message -> header", "other fields", ", ".join(_HEADER_TYPES))
    types = [(name, type(header[name]).__name__, kind.__name__) for name, kind in _HEADER_TYPES.items()]
    wrong = [Problem(f"message -> {name}", found, expected) for name, found, expected in types if found != expected]
    kinds = [kind.value for kind in Kind]
    if type(header["kind"]) is str and header["kind"] not in kinds:
        wrong.append(Problem("message -> kind", "an unknown kind", ", ".join(kinds)))
    require(wrong, error=MessageRefused)
