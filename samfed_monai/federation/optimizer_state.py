"""An optimizer's state as plain named tensors, so that it can be stored as safetensors and come back bit for bit."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from samfed_monai.errors import Problem, Refused

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

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


def drop_if_poisoned(optimizer: Optimizer) -> bool:
    """Forgets all moments when one of them is NaN or infinite, and says whether it did.

    A round that diverged would otherwise spoil every later round of the site, whatever weights the server sends.
    """
    moments = (value for entry in optimizer.state.values() for value in entry.values())
    if all(math.isfinite(value.sum()) for value in moments if isinstance(value, torch.Tensor)):
        return False
    optimizer.state.clear()
    return True


def _tuples(group: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) for name, value in group.items() if isinstance(value, list) and name != "params"}
