"""An optimizer's state as plain named tensors, so that it can be stored as safetensors and come back bit for bit."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from samfed_monai.core.errors import Problem, Refused

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

logger = logging.getLogger(__name__)

_PLAIN = "plain"


def pack(optimizer: Optimizer) -> dict[str, Tensor]:
    """Named tensors of ``optimizer.state_dict()``.

    Moments are ``<parameter index>.<name>`` and refer to the optimizer's own memory; everything that is not a tensor
    (parameter groups, counts) is JSON in the bytes of one ``uint8`` tensor.
    """
    content = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    plain: dict[str, dict[str, Any]] = {}
    for index, entry in content["state"].items():
        for name, value in entry.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{index}.{name}"] = value
            else:
                plain.setdefault(str(index), {})[name] = value
    text = json.dumps({"groups": content["param_groups"], "state": plain}).encode()
    tensors[_PLAIN] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    return tensors


def unpack(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Puts what :func:`pack` returned back into an optimizer of the same parameters.

    Raises:
        Refused: the tensors belong to another optimizer.
    """
    try:
        plain = json.loads(bytes(tensors[_PLAIN].numpy()))
        state: dict[int, dict[str, Any]] = {int(index): dict(entry) for index, entry in plain["state"].items()}
        for key, tensor in tensors.items():
            if key != _PLAIN:
                index, _, name = key.partition(".")
                state.setdefault(int(index), {})[name] = tensor
        groups = [{**group, **_tuples(group)} for group in plain["groups"]]
        optimizer.load_state_dict({"state": state, "param_groups": groups})
    except (KeyError, ValueError, TypeError) as error:
        expected = f"the state of this {type(optimizer).__name__}"
        raise Refused([Problem("optimizer state", found=str(error), expected=expected)]) from error


@contextmanager
def kept_finite(optimizer: Optimizer, *, owner: str) -> Iterator[None]:
    """Forgets all moments when a block, whether it fails or not, leaves one of them NaN or infinite, and says so.

    A round that diverged would otherwise spoil every later round of the site, whatever weights the server sends.

    Args:
        optimizer: whose moments they are.
        owner: the site, for the log.
    """
    try:
        yield
    finally:
        moments = (value for entry in optimizer.state.values() for value in entry.values())
        if not all(math.isfinite(value.sum()) for value in moments if isinstance(value, torch.Tensor)):
            optimizer.state.clear()
            logger.warning("%s: the optimizer's moments were not finite and were forgotten", owner)


def _tuples(group: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) for name, value in group.items() if isinstance(value, list) and name != "params"}
