"""One way into plain float32 tensors, whatever MONAI or NumPy handed over."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def plain(value: Any) -> Tensor:
    """A float32 tensor without MONAI's metadata (which costs time in every operation and every collate)."""
    tensor = torch.as_tensor(value)
    if type(tensor) is not Tensor:
        tensor = tensor.as_subclass(Tensor)
    return tensor.float()
