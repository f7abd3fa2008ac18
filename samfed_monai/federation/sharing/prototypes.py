"""A site that takes the mean feature of each class from all, and answers with its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from samfed_monai.federation.envelope import Envelope, Kind
from samfed_monai.federation.sharing.public_masks import PublicMaskSharing
from samfed_monai.networks.intake import feature_width

if TYPE_CHECKING:
    from torch import Tensor

    from samfed_monai.handlers.prototype_term import PrototypeTerm

MEANS, COUNTS = "prototypes", "counts"


class PrototypeSharing(PublicMaskSharing):
    """Takes the prototypes of all sites and gives its own (FedProto: Tan et al., arXiv 2105.00243, algorithm 1).

    The steps on ``D_p`` before the local epoch use its labels, and the pull towards the prototypes, so that every
    heterogeneous row takes the same steps.

    Args:
        term: the term that collects the site's own prototypes and pulls towards those of all, in both places.
        others: arguments of :class:`PublicMaskSharing`; its exchange and gate are not used.

    Example::

        "sharing#_target_": "samfed_monai.federation.PrototypeSharing", "sharing#term": "@terms#prototype"
    """

    def __init__(self, *, term: PrototypeTerm, **others: Any) -> None:
        super().__init__(term=term, **others)
        self.term = term

    def receive(self, round: int, rounds: int, kind: Kind, tensors: Mapping[str, Tensor]) -> dict[str, float]:
        if tensors:
            width = feature_width(self.network)
            like = {MEANS: torch.empty(self.term.classes, width), COUNTS: torch.empty(self.term.classes)}
            Envelope(kind, "", 0, 1, tensors=dict(tensors)).check(up=False, like=like)
            self.term.pull_to(tensors[MEANS], tensors[COUNTS] > 0)
        return super().receive(round, rounds, Kind.METRICS, {})

    def may_share(self) -> Mapping[Kind, Mapping[str, Tensor]]:
        classes, width = self.term.classes, feature_width(self.network)
        return {Kind.PROTOTYPES: {MEANS: torch.empty(classes, width), COUNTS: torch.empty(classes)}}

    def share(self) -> tuple[Kind, dict[str, Tensor]]:
        collected = self.term.collected
        if collected is None:
            raise RuntimeError("no step was taken, so there are no prototypes to share")
        return Kind.PROTOTYPES, {MEANS: collected.means().cpu(), COUNTS: collected.counts.cpu()}
