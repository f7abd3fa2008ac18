"""SAM's position tables, learned at 1024 px, for other input sizes."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional as F


def fit_positions(state: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Interpolates absolute and relative position tables of a ViT encoder to the shapes of ``like``.

    Args:
        state: the checkpoint; ``pos_embed (1, h, w, C)`` bicubically, ``rel_pos_* (2 n - 1, c)`` linearly, as SAM's own
            ``get_rel_pos`` does. Everything else passes unchanged, and tables that fit already are not touched.
        like: names to tensors of the network that will load the result.
    """
    fitted = dict(state)
    for name, tensor in state.items():
        target = like.get(name)
        if target is None or tensor.shape == target.shape:
            continue
        if name.endswith("pos_embed") and tensor.dim() == 4:
            grid = F.interpolate(tensor.permute(0, 3, 1, 2), target.shape[1:3], mode="bicubic", align_corners=False)
            fitted[name] = grid.permute(0, 2, 3, 1).contiguous()
        elif ".rel_pos_" in name and tensor.dim() == 2:
            fitted[name] = F.interpolate(tensor.T[None], target.shape[0], mode="linear")[0].T.contiguous()
    return fitted
