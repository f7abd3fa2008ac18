"""Weights sent as compressed differences from weights that both ends have, with error feedback at the sender.

The error of one message is added to the next difference (Karimireddy et al., arXiv 1901.09847), at sites after their
local steps (Basu et al., arXiv 1906.02367) and also at the server (Tang et al., arXiv 1905.05957). Vectors, counters
and image-derived statistics are not compressed: they are a hundredth of a network, and variances of batch norms then
cannot fall below 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from samfed_monai.core.errors import Problem
from samfed_monai.core.io import all_finite, check_tensors
from samfed_monai.core.tensor_file import checksum
from samfed_monai.protocol.message import Kind, message_refused
from samfed_monai.protocol.statistics import PREFIX

if TYPE_CHECKING:
    from samfed_monai.protocol.strategy import Strategy

NONE, HALF, BYTES = "float32", "bfloat16", "int8"
#: Up to this rank a sum of products of 8-bit integers is exact in float32, in any order of its terms:
#: 127 * 127 * 1024 < 2^24. So the server and every site decode a message to the same bits, on any processor.
MOST_RANK = 1024
"""The largest rank, also in ``federation/plan.schema.json``."""

_LARGEST = 127
#: Power iterations. For the steps of ``mobile_sam_fpn`` at rank 32, two lose 31 % of a step, three 29, one 42.
_ITERATIONS = 2
_ERROR, _STATE = "compression.left.", "compression.sent"


@dataclass(frozen=True)
class Compression:
    """Encoding of the difference of a matrix: a floating tensor of two axes or more, with the first as rows.

    Args:
        form: ``bfloat16``: 2 bytes per entry. ``int8``: a byte per entry, in steps of 1/127 of the row's largest. A
            rank r: the product of two such ``int8`` matrices, (rows, r) and (columns, r), as in PowerSGD (Vogels et
            al., arXiv 1905.13727), but with two power iterations from a fixed start instead of one from
            the last round; ``int8`` if that is not smaller.

    Example::

        "compression": 32
    """

    form: str | int

    @classmethod
    def of(cls, value: str | int) -> Compression | None:
        """Compression of a value that a plan's schema has checked; ``None`` if whole weights are sent."""
        return None if value == NONE else cls(value)

    def like(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Names, shapes and dtypes of a message of ``weights``, without values."""
        return _by_name(weights, lambda name: _empty(*weights[name].reshape(len(weights[name]), -1).shape, self.form))

    @torch.no_grad()
    def encode(self, weights: Mapping[str, Tensor], steps: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the tensors of a message.

        Args:
            weights: at the sender; those that are not matrices are sent unchanged.
            steps: the differences of the matrices, float32 and finite.
        """
        return _by_name(weights, lambda name: _encode(steps[name].flatten(1), self.form))

    @torch.no_grad()
    def decode(self, tensors: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the sender's weights as every receiver decodes them, to the bit; in the order of ``base``, then
        statistics.

        Args:
            tensors: of the message, as in :meth:`like`.
            base: weights that the differences are taken from, with the same names.
        """
        weights: dict[str, Tensor] = {}
        for name, old in base.items():
            if _is_matrix(name, old):
                parts = {part: tensors[name + part] for part in _PARTS if name + part in tensors}
                weights[name] = (old + _decode(parts).reshape(old.shape)).to(old.dtype)
            elif name in tensors:
                weights[name] = tensors[name]
        return {**weights, **{name: tensor for name, tensor in tensors.items() if name.startswith(PREFIX)}}


def _is_matrix(name: str, tensor: Tensor) -> bool:
    return tensor.ndim > 1 and tensor.numel() > 0 and tensor.is_floating_point() and not name.startswith(PREFIX)


def _by_name(weights: Mapping[str, Tensor], parts_of: Callable[[str], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Returns ``weights`` with each matrix replaced by its parts."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        parts = parts_of(name) if _is_matrix(name, tensor) else {"": tensor}
        tensors |= {name + part: values for part, values in parts.items()}
    return tensors


_HALF, _CODES, _SCALES, _RIGHT, _RIGHT_SCALES = _PARTS = (":half", ":codes", ":scales", ":right", ":right_scales")


def _encode(matrix: Tensor, form: str | int) -> dict[str, Tensor]:
    """Encodes a float32 matrix (rows, columns) as parts, by suffix of their names."""
    rows, columns = matrix.shape
    if form == HALF:
        return {_HALF: matrix.bfloat16()}
    if isinstance(form, int) and form * (rows + columns) < rows * columns:
        right = _start_matrix(columns, form).to(matrix.device)
        for _ in range(_ITERATIONS):
            left = torch.linalg.qr(matrix @ right).Q
            right = matrix.T @ left
        return dict(zip((_CODES, _SCALES, _RIGHT, _RIGHT_SCALES), (*_quantise(left), *_quantise(right)), strict=True))
    return dict(zip((_CODES, _SCALES), _quantise(matrix), strict=True))


@lru_cache(maxsize=1024)
def _empty(rows: int, columns: int, form: str | int) -> dict[str, Tensor]:
    """The parts of a matrix of this size, without values."""
    return _encode(torch.empty(rows, columns, device="meta"), form)


def _decode(parts: Mapping[str, Tensor]) -> Tensor:
    if _HALF in parts:
        return parts[_HALF].float()
    matrix = parts[_CODES].float()
    if _RIGHT in parts:  # whole numbers are added first, so that each later product rounds once
        matrix = (matrix @ parts[_RIGHT].float().T) * parts[_RIGHT_SCALES]
    return matrix * parts[_SCALES][:, None]


@lru_cache(maxsize=256)
def _start_matrix(columns: int, rank: int) -> Tensor:
    """Fixed normal random numbers (columns, rank)."""
    return torch.randn(columns, rank, generator=torch.Generator().manual_seed(0))


def _quantise(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Codes (rows, columns) int8 and scales (rows,) float32, whose product approximates ``matrix``."""
    scales = matrix.abs().amax(dim=1) / _LARGEST
    codes = (matrix / torch.where(scales > 0, scales, 1)[:, None]).round().clamp(-_LARGEST, _LARGEST)
    return codes.to(torch.int8), scales


class Sender:
    """The sending end: it keeps the compression error so far and adds it to the next difference.

    Args:
        compression: of the run.
    """

    def __init__(self, compression: Compression) -> None:
        self.compression = compression
        self._errors: dict[str, Tensor] = {}

    @torch.no_grad()
    def encode(
        self, weights: Mapping[str, Tensor], base: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Returns the tensors of a message, and the weights that the receiver decodes from them.

        Args:
            weights: of the sender.
            base: weights of the receiver; other names are ignored.

        Raises:
            MessageRefused: weights that the receiver does not have, NaN or infinity; the kept error is then unchanged.
        """
        matrices = [name for name, tensor in weights.items() if _is_matrix(name, tensor)]
        if any(name not in base or base[name].shape != weights[name].shape for name in matrices):
            expected = "the receiver's names and shapes (differences are sent)"
            raise message_refused("message -> tensors", "weights of another network", expected)
        base = {name: base[name] for name in weights if name in base}
        steps = {name: weights[name].float() - base[name].float() for name in matrices}
        steps = {name: step + self._errors[name] if name in self._errors else step for name, step in steps.items()}
        if not all(all_finite(step) for step in steps.values()):
            raise message_refused("message -> tensors", "NaN or infinity", "finite values")
        tensors = self.compression.encode(weights, steps)
        decoded = self.compression.decode(tensors, base)
        self._errors = {name: step - (decoded[name].float() - base[name].float()) for name, step in steps.items()}
        return tensors, decoded

    def state_dict(self) -> dict[str, Tensor]:
        """The compression error; never empty, so that the start is a state, too."""
        return {_STATE: torch.tensor(0), **{_ERROR + name: tensor for name, tensor in self._errors.items()}}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Restores the state of :meth:`state_dict`; returns tensors of other names."""
        self._errors = {name.removeprefix(_ERROR): tensor for name, tensor in state.items() if name.startswith(_ERROR)}
        return {name: tensor for name, tensor in state.items() if name != _STATE and not name.startswith(_ERROR)}


@dataclass(frozen=True)
class Step:
    """The difference between the models of two rounds, for sites that have the first.

    Args:
        before, after: checksums of the two models.
        form: of the :class:`Compression`.
        tensors: of the message.
    """

    before: str
    after: str
    form: str
    tensors: Mapping[str, Tensor]

    @classmethod
    def of(cls, sender: Sender, weights: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> tuple[Step, dict]:
        """Returns the step from ``base`` to ``weights``, and the model that sites compute from it."""
        tensors, model = sender.encode(weights, base)
        return cls(checksum(base), checksum(model), str(sender.compression.form), tensors), model


def apply_step(held: Mapping[str, Tensor], tensors: Mapping[str, Tensor], form: str) -> dict[str, Tensor] | None:
    """Applies a :class:`Step` to the ``held`` weights; ``None`` if its tensors do not fit them."""
    compression = Compression(int(form) if form.isdecimal() else form)
    like = compression.like(held)
    return None if check_tensors(tensors, like=like) else compression.decode(tensors, held)


def compression_problems(value: str | int, strategy: Strategy, *, noise: bool, sums: bool) -> Iterator[Problem]:
    """Problems that keep a run from compressing its messages, found before anything is computed.

    Args:
        value: of ``federate.json -> compression``.
        strategy: of the run.
        noise: whether sites add noise to their updates.
        sums: whether secure aggregation adds masked updates.
    """
    if value == NONE:
        return
    exchange, name = strategy.exchange, type(strategy).__name__
    where, plain = "federate.json -> compression", f", or compression: {NONE!r}"
    obstacles = {
        f"an exchange of {exchange.word}": exchange.answer is not Kind.WEIGHTS,
        # their difference includes the error of earlier messages, which would be added again
        f"{name}, in which each site trains its own network": exchange.own_networks,
        f"{name}, which makes a model for each site": exchange.tailored,
        f"{name}, which repeats the warm start between rounds": bool(strategy.rounds_before_warm_start),
    }
    for text in [text for text, holds in obstacles.items() if holds][:1]:
        expected = "an exchange of weights in which all sites start from the same model"
        yield Problem(where, text, expected, f"choose a variant that averages, such as samfed{plain}")
    if sums:
        expected = "updates that the server can read (masked updates cannot be compressed)"
        yield Problem(where, "secure_aggregation", expected, f"set privacy#secure_aggregation: null{plain}")
    if noise and isinstance(value, int):
        expected = f"{HALF!r} or {BYTES!r} (the noise of differential_privacy has no low rank)"
        yield Problem(where, f"rank {value}", expected, "or set privacy#differential_privacy: null")
