"""A site that keeps its network and gives nothing of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from samfed_monai.federation.envelope import Kind
from samfed_monai.federation.sharing.base import Sharing

if TYPE_CHECKING:
    from torch import Tensor


class NothingShared(Sharing):
    """Nothing but numbers leaves the site, and nothing comes: the site's side of ``LocalOnly`` and ``Untrained``.

    Example::

        "sharing": {"_target_": "samfed_monai.federation.NothingShared"}
    """

    def receive(self, round: int, rounds: int, kind: Kind, tensors: Mapping[str, Tensor]) -> dict[str, float]:
        return {}

    def share(self) -> tuple[Kind, dict[str, Tensor]]:
        return Kind.METRICS, {}
