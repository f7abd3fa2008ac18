"""FedRep (arXiv 2102.07078): in every round the personal head is trained first, then the shared body."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from samfed_monai.core.validators import in_range, require
from samfed_monai.handlers.parts_in_turn import PartsInTurn
from samfed_monai.networks.key_patterns import network_split


class AlternatingParts(PartsInTurn):
    """Trains the personal part with the shared one at rest, then the shared part with the personal one at rest.

    That is a site's round of FedRep (Collins et al., arXiv 2102.07078, algorithm 1: some epochs of the head, then one
    of the representation), counted here in steps of an epoch. The part at rest takes no gradient at all; running
    statistics of a body at rest still follow its images, as in the paper's code. For SAM with experts see
    ``DecoupledStages``.

    Args:
        personal: patterns of what is personal, the bundle's ``personal``.
        share: part of an epoch's steps that train the personal part, rounded up; in (0, 1).

    Raises:
        Refused: a share outside (0, 1); at ``STARTED``, patterns that match nothing, nothing to train in a part, or
            too few steps for both.

    Example::

        "before#parts": {
            "_target_": "samfed_monai.methods.fedrep.AlternatingParts", "personal": "@personal", "share": 0.5
        }
    """

    where = "before#parts (AlternatingParts)"

    def __init__(self, *, personal: Sequence[str], share: float = 0.5) -> None:
        require(in_range(f"{self.where} -> share", share, "a part", above=0, below=1))
        super().__init__(share)
        self.personal = personal

    def check(self, engine: Any) -> None:
        """Finds the two parts, and refuses what cannot be trained in turn."""
        split = network_split(engine.network, self.personal)
        trained = {name: weight for name, weight in engine.network.named_parameters() if weight.requires_grad}
        names = {"personal": split.personal, "shared": split.shared}
        parts = {part: [trained[name] for name in names[part] if name in trained] for part in names}
        hint = "name one in personal, for instance segmentation_head.*, or leave this handler out"
        self.settle(engine, parts, hint=hint)
