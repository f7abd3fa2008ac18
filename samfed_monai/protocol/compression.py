"""Weights on the wire as compressed differences to weights that both ends hold, with error feedback at the sender.

What one message leaves out is added to the next difference (Karimireddy et al., arXiv 1901.09847), at sites after
their local steps (Basu et al., arXiv 1906.02367) and at the server as well (Tang et al., arXiv 1905.05957). Vectors,
counters and image-derived statistics travel as they are: they are a hundredth of a network, and so no variance of a
batch norm falls below 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch

from samfed_monai.core.errors import Problem
from samfed_monai.core.io import all_finite
from samfed_monai.core.tensor_file import checksum
from samfed_monai.protocol.message import Kind, message_refused
from samfed_monai.protocol.statistics import PREFIX

if TYPE_CHECKING:
    from torch import Tensor

    from samfed_monai.protocol.strategy import Strategy

NONE, HALF, BYTES = "float32", "bfloat16", "int8"
#: Up to this rank a sum of products of whole numbers of 8 bits is exact in float32, whatever the order of its terms:
#: 127 * 127 * 1024 < 2^24. So the server and every site make the same bits of a message, on any processor.
MOST_RANK = 1024
SCHEMA: Mapping[str, Any] = {
    "anyOf": [{"enum": [NONE, HALF, BYTES]}, {"type": "integer", "minimum": 1, "maximum": MOST_RANK}]
}
"""JSON Schema of ``federate.json -> compression``."""

_LARGEST = 127
#: Power iterations. For the steps of ``mobile_sam_fpn`` at rank 32, two leave 31 % of a step out, three 29, one 42.
_ITERATIONS = 2
_LEFT, _MARK = "compression.left.", "compression.sent"


@dataclass(frozen=True)
class Compression:
    """How the difference of a matrix travels: of a floating tensor of two axes or more, with the first in its rows.

    Args:
        form: ``bfloat16``: 2 bytes an entry. ``int8``: a byte an entry, in steps of 1/127 of the row's largest. A rank
            r: matrices of such bytes, (rows, r) and (columns, r), of which it is the product, as in PowerSGD (Vogels et
            al., arXiv 1905.13727), but with two power iterations from a fixed start in place of one from the round
            before; where that is not smaller, ``int8``.

    Example::

        "compression": 32
    """

    form: str | int

    @classmethod
    def of(cls, value: str | int) -> Compression | None:
        """From a value that :data:`SCHEMA` has checked; ``None`` where whole weights travel."""
        return None if value == NONE else cls(value)

    def like(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Names, shapes and dtypes of the message that ``weights`` become, without values."""
        return _by_name(weights, lambda name: _blank(*weights[name].reshape(len(weights[name]), -1).shape, self.form))

    @torch.no_grad()
    def packed(self, weights: Mapping[str, Tensor], steps: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of a message.

        Args:
            weights: at the sender; what is no matrix is taken from here.
            steps: the differences of the matrices, float32 and finite.
        """
        return _by_name(weights, lambda name: _encoded(steps[name].flatten(1), self.form))

    @torch.no_grad()
    def restored(self, tensors: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The sender's weights as every receiver has them, to the bit; in the order of ``base``, then statistics.

        Args:
            tensors: as :meth:`like` says.
            base: what the differences are to, of the same names.
        """
        weights: dict[str, Tensor] = {}
        for name, old in base.items():
            if _is_matrix(name, old):
                parts = {part: tensors[name + part] for part in _PARTS if name + part in tensors}
                weights[name] = (old + _decoded(parts).reshape(old.shape)).to(old.dtype)
            elif name in tensors:
                weights[name] = tensors[name]
        return {**weights, **{name: tensor for name, tensor in tensors.items() if name.startswith(PREFIX)}}


def _is_matrix(name: str, tensor: Tensor) -> bool:
    return tensor.ndim > 1 and tensor.numel() > 0 and tensor.is_floating_point() and not name.startswith(PREFIX)


def _by_name(weights: Mapping[str, Tensor], parts_of: Callable[[str], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """``weights`` with the parts of each matrix in its place."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        parts = parts_of(name) if _is_matrix(name, tensor) else {"": tensor}
        tensors |= {name + part: values for part, values in parts.items()}
    return tensors


_HALF, _CODES, _SCALES, _RIGHT, _RIGHT_SCALES = _PARTS = (":half", ":codes", ":scales", ":right", ":right_scales")


def _encoded(matrix: Tensor, form: str | int) -> dict[str, Tensor]:
    """A float32 matrix (rows, columns) as its parts, by the end of their names."""
    rows, columns = matrix.shape
    if form == HALF:
        return {_HALF: matrix.bfloat16()}
    if isinstance(form, int) and form * (rows + columns) < rows * columns:
        right = _start(columns, form).to(matrix.device)
        for _ in range(_ITERATIONS):
            left = torch.linalg.qr(matrix @ right).Q
            right = matrix.T @ left
        return dict(zip((_CODES, _SCALES, _RIGHT, _RIGHT_SCALES), (*_quantised(left), *_quantised(right)), strict=True))
    return dict(zip((_CODES, _SCALES), _quantised(matrix), strict=True))


@lru_cache(maxsize=1024)
def _blank(rows: int, columns: int, form: str | int) -> dict[str, Tensor]:
    """The parts of a matrix of this size, without values."""
    return _encoded(torch.empty(rows, columns, device="meta"), form)


def _decoded(parts: Mapping[str, Tensor]) -> Tensor:
    if _HALF in parts:
        return parts[_HALF].float()
    matrix = parts[_CODES].float()
    if _RIGHT in parts:  # whole numbers are added first, so that each later product is one rounding
        matrix = (matrix @ parts[_RIGHT].float().T) * parts[_RIGHT_SCALES]
    return matrix * parts[_SCALES][:, None]


@lru_cache(maxsize=256)
def _start(columns: int, rank: int) -> Tensor:
    """(columns, rank) normal numbers that are always the same."""
    return torch.randn(columns, rank, generator=torch.Generator().manual_seed(0))


def _quantised(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """(rows, columns) int8 and (rows,) float32, of which the product is near ``matrix``."""
    scales = matrix.abs().amax(dim=1) / _LARGEST
    codes = (matrix / torch.where(scales > 0, scales, 1)[:, None]).round().clamp(-_LARGEST, _LARGEST)
    return codes.to(torch.int8), scales


class Sender:
    """The end that sends: it keeps what it has left out so far and adds it to the next difference.

    Args:
        compression: of the run.
    """

    def __init__(self, compression: Compression) -> None:
        self.compression = compression
        self._left: dict[str, Tensor] = {}

    @torch.no_grad()
    def packed(
        self, weights: Mapping[str, Tensor], base: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The tensors of a message, and the weights that the receiver makes of them.

        Args:
            weights: of here.
            base: what the receiver holds; further names are passed over.

        Raises:
            MessageRefused: weights that it does not hold, NaN or infinity; nothing is remembered of them then.
        """
        matrices = [name for name, tensor in weights.items() if _is_matrix(name, tensor)]
        if any(name not in base or base[name].shape != weights[name].shape for name in matrices):
            expected = "those of the request, to which differences are made"
            raise message_refused("message -> tensors", "other weights", expected)
        base = {name: base[name] for name in weights if name in base}
        steps = {name: weights[name].float() - base[name].float() for name in matrices}
        steps = {name: step + self._left[name] if name in self._left else step for name, step in steps.items()}
        if not all(all_finite(step) for step in steps.values()):
            raise message_refused("message -> tensors", "NaN or infinity", "finite values")
        tensors = self.compression.packed(weights, steps)
        restored = self.compression.restored(tensors, base)
        self._left = {name: step - (restored[name].float() - base[name].float()) for name, step in steps.items()}
        return tensors, restored

    def state_dict(self) -> dict[str, Tensor]:
        """What it has left out; never empty, so that the start is a state as well."""
        return {_MARK: torch.tensor(0), **{_LEFT + name: tensor for name, tensor in self._left.items()}}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Puts back what :meth:`state_dict` returned; returns the other names."""
        self._left = {name.removeprefix(_LEFT): tensor for name, tensor in state.items() if name.startswith(_LEFT)}
        return {name: tensor for name, tensor in state.items() if name != _MARK and not name.startswith(_LEFT)}


@dataclass(frozen=True)
class Step:
    """The difference between the models of two rounds, for sites that hold the first.

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
        """The step from ``base`` to ``weights``, and the model that sites make of it."""
        tensors, model = sender.packed(weights, base)
        return cls(checksum(base), checksum(model), str(sender.compression.form), tensors), model


def stepped(held: Mapping[str, Tensor], tensors: Mapping[str, Tensor], form: str) -> dict[str, Tensor] | None:
    """The weights that a :class:`Step` leads to from those that are held; ``None`` where it is none of theirs."""
    compression = Compression(int(form) if form.isdecimal() else form)
    like = compression.like(held)
    if tensors.keys() != like.keys() or any(
        tensors[name].shape != like[name].shape or tensors[name].dtype != like[name].dtype for name in like
    ):
        return None
    return compression.restored(tensors, held)


def compression_problems(value: str | int, strategy: Strategy, *, noise: bool, sums: bool) -> list[Problem]:
    """Why a run cannot compress its messages, before anything is computed.

    Args:
        value: of ``federate.json -> compression``.
        strategy: of the run.
        noise: whether sites add noise to what they send.
        sums: whether updates are added under masks.
    """
    if value == NONE:
        return []
    exchange, name, problems = strategy.exchange, type(strategy).__name__, []
    where, plain = "federate.json -> compression", f", or compression: {NONE!r}"
    found = {
        f"an exchange of {exchange.word}": exchange.answer is not Kind.WEIGHTS,
        # their distance has in it what was left out before, which would be added again
        f"{name}, whose sites train networks of their own": exchange.own_networks,
        f"{name}, which has a model for each site": exchange.tailored,
        f"{name}, which trains anew between two rounds": bool(strategy.rounds_before_warm_start),
    }
    for text in [text for text, holds in found.items() if holds][:1]:
        expected = "weights of sites that all train from the model of the round, which differ by their steps"
        problems.append(Problem(where, text, expected, f"choose a variant that averages, such as samfed{plain}"))
    if sums:
        expected = "updates that the server reads: masked ones hide in all their bits"
        problems.append(Problem(where, "secure_aggregation", expected, f"privacy#secure_aggregation: null{plain}"))
    if noise and isinstance(value, int):
        expected = f"{HALF!r} or {BYTES!r}: noise of differential_privacy has no low rank, and would be kept for later"
        problems.append(Problem(where, f"rank {value}", expected, "or privacy#differential_privacy: null"))
    return problems
