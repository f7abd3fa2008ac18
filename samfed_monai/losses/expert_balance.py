"""The loss that keeps a mixture's experts evenly in use."""

from __future__ import annotations

from torch import Tensor


def load_balance(share: Tensor, probability: Tensor) -> Tensor:
    """``K sum_k f_k P_k``, averaged over layers (Fedus et al., Switch Transformers, arXiv 2101.03961, equation 4).

    Switch sends a token to one expert, GShard (Lepikhin et al., arXiv 2006.16668, section 2.2) to two. With ``k``
    experts a token we count all ``k`` and divide by ``k``, so that ``f`` sums to 1; the gradient flows through ``P``
    alone, as in both. Equal use gives 1; all tokens at the same ``k`` experts with certainty, ``K / k`` at most.

    Args:
        share: (..., K) float, ``f``: part of all assignments of tokens that each expert got; no gradient.
        probability: (..., K) float, ``P``: mean over tokens of the gate's softmax over all experts.

    Returns:
        a scalar >= 0, without the factor (docs/pfedsam.md: 0.01).
    """
    return share.shape[-1] * (share.detach() * probability).sum(dim=-1).mean()
