"""FedRep (arXiv 2102.07078): in every round the personal head is trained first, then the shared body."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from samfed_monai.core.validators import in_range, require
from samfed_monai.handlers.parts_in_turn import PartsInTurn
from samfed_monai.networks.key_patterns import network_split


class AlternatingParts(PartsInTurn):
    """Trains the personal part with the shared one frozen, then the shared part with the personal one frozen.

    This is a site's round of FedRep (Collins et al., arXiv 2102.07078, algorithm 1: some epochs of the head, then one
    of the representation), counted here in steps of an epoch. The frozen part gets no gradient; running statistics of a
    frozen body are still updated, as in the paper's code. For SAM with experts see ``DecoupledStages``.

    Args:
        personal: patterns of the personal weights, the bundle's ``personal``.
        share: part of an epoch's steps that train the personal part, rounded up; in (0, 1).

    Raises:
        Refused: a share outside (0, 1); at ``STARTED``, patterns that match nothing, a part without trained weights, or
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
        """Finds the two parts; refuses a network that has no weights to train in one of them."""
        split = network_split(engine.network, self.personal)
        trained = {name: weight for name, weight in engine.network.named_parameters() if weight.requires_grad}
        names = {"personal": split.personal, "shared": split.shared}
        parts = {part: [trained[name] for name in names[part] if name in trained] for part in names}
        hint = "add a layer to personal, for instance segmentation_head.*, or remove this handler"
        self.set_parts(engine, parts, hint=hint)
