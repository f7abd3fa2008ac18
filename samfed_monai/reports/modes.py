"""What rows of a comparison must have in common, and which of them is the method that the others are held against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from samfed_monai.reports.variant_names import ABLATIONS, HETEROGENEOUS, OWN_LABELS

FLOOR, CEILING = "dp_only", "oracle"
"""The rows that every other one of their group is measured against (docs/method.md)."""


@dataclass(frozen=True)
class Mode:
    """How the sites of a run learn; rows of different modes are shown in tables of their own.

    Args:
        name: heading of a group.
        method: what sentences and headings call the method.
        hero: its variant.
        own: other variants of it, which are no rivals.
        references: variants that the others are subtracted from, by seed.
        gap: whether a row's share of the way from :data:`FLOOR` to :data:`CEILING` is told.
    """

    name: str
    method: str
    hero: str
    own: frozenset[str]
    references: tuple[str, ...]
    gap: bool = True


ONE_NETWORK = Mode("Homogeneous", "SAM-Fed", "samfed", ABLATIONS, (FLOOR,))
UNLIKE_NETWORKS = Mode("Heterogeneous", "SAM-Fed", "heterogeneous", ABLATIONS, (FLOOR, "hssf", "local_only"))
LABELLED = Mode(
    "Own labels", "pFedSAM in one stage", "pfedsam_joint", frozenset({"pfedsam"}), ("fedsam", "local_sam"), gap=False
)

MODES = (ONE_NETWORK, UNLIKE_NETWORKS, LABELLED)
"""In the order of tables."""


def mode_of(results: Mapping[str, Any]) -> Mode:
    """Whether a run's sites learned from labels of their own, and whether they had networks of their own.

    Both are as its results say, else as its variant is known to.
    """
    if results.get("own_labels", results["variant"] in OWN_LABELS):
        return LABELLED
    networks = {network for site, network in results.get("networks", {}).items() if site in results["sites"]}
    if len(networks) > 1 or results.get("exchange") in ("predictions", "prototypes"):
        return UNLIKE_NETWORKS
    return UNLIKE_NETWORKS if results["variant"] in HETEROGENEOUS else ONE_NETWORK
