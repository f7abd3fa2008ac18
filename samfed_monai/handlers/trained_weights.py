"""Trained weights from a file into a network that may have tensors which no run ever changes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from samfed_monai.errors import Problem, Refused
from samfed_monai.io import check_tensors, safe_load
from samfed_monai.networks.key_patterns import network_split

if TYPE_CHECKING:
    from torch import Tensor, nn

_FEW = 5  # problems of a file that are worth a line each


def trained_weights(network: nn.Module, path: str | Path) -> dict[str, Tensor]:
    """Reads weights for a network: every tensor of it, or all but its frozen ones, which are a checkpoint's.

    Args:
        network: what they are for; ``load_state_dict(..., strict=False)`` takes them.
        path: ``.safetensors``, or a torch file that loads with ``weights_only=True``; nothing is unpickled.

    Raises:
        Refused: names, shapes or dtypes that do not fit, or values that are not finite; a part of the network, or the
            weights of another one, in one sentence instead of one for every tensor.
    """
    weights, state, frozen = safe_load(path), network.state_dict(), set(network_split(network).frozen)
    wanted = {name: tensor for name, tensor in state.items() if name not in frozen or weights.keys() & frozen}
    missing = [name for name in wanted if name not in weights]
    problems = check_tensors(weights, like=wanted, where=Path(path).name)
    if missing and weights.keys() <= wanted.keys():
        found, expected = f"{len(missing)} of them missing, first {missing[0]}", "all tensors of this network"
        mend = "those that are personal are with the sites: samfed model RUN --site SITE --output FILE"
        problems = [Problem(str(path), found=found, expected=expected, mend=mend)]
    elif len(problems) > _FEW:
        found = f"{len(problems)} tensors that differ, for instance {problems[0]}"
        mend = "give --network_name as it was in training"
        problems = [Problem(str(path), found=found, expected="weights of this network", mend=mend)]
    if problems:
        raise Refused(problems)
    return weights
