"""Rows of a comparison: their variants' names, the groups that they are compared in, and who is held against whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any

TEACHER, OWN_TEACHER = "teacher", "own_teacher"

VARIANTS = {
    "dp_only": "Public set only",
    "local_only": "Every site alone",
    TEACHER: "SAM teacher alone",
    OWN_TEACHER: "SAM teacher alone, each site's own",
    "no_sam": "Federated, no SAM",
    "fedprox": "FedProx",
    "fedbn": "FedBN",
    "fedper": "FedPer",
    "fedrep": "FedRep",
    "ditto": "Ditto",
    "fedicra": "FedICRA's adaptive aggregation",
    "apple": "APPLE",
    "fca": "FCA, our reading",
    "mean_teacher": "Mean Teacher",
    "unimatch": "UniMatch",
    "semifl": "SemiFL",
    "no_agreement": "SAM-Fed without the per-image factor g",
    "confidence_selection": "SAM-Fed, labels chosen by confidence",
    "no_sam_kd": "SAM-Fed without SAM distillation",
    "no_global_kd": "SAM-Fed without global distillation",
    "unadapted_sam": "SAM-Fed with unadapted SAM",
    "hssf_compat": "HSSF's local step, its code's conventions",
    "samfed": "SAM-Fed",
    "fedmd": "FedMD",
    "fedproto": "FedProto",
    "hssf": "HSSF, ours without SAM",
    "heterogeneous": "SAM-Fed, heterogeneous",
    "oracle": "Oracle: sites have labels",
    "zero_shot": "SAM as it comes",
    "supervised": "Small network, own labels",
    "local_sam": "Local SAM",
    "fedsam": "FedSAM",
    "full_sam": "Full fine-tuning of SAM",
    "pfedsam": "pFedSAM",
    "pfedsam_joint": "pFedSAM in one stage",
}
"""Variants in the order of every table, with their titles."""

NOTES = {
    "dp_only": "trained on the labelled public set alone; the row to beat",
    "local_only": "nothing is exchanged: every site's own network, its own confident labels, the steps of hssf",
    TEACHER: "the frozen SAM that the students learn from, on the same test images",
    OWN_TEACHER: "the same after every site trained its copy further on its own unlabelled images",
    "no_sam": "federated averaging on the student's own confident labels (FixMatch)",
    "fedprox": "no_sam, held near the round's global weights",
    "fedbn": "no_sam; every site's normalisation layers are its own",
    "fedper": "no_sam; every site's last layer is its own",
    "fedrep": "fedper, the last layer trained before the rest",
    "zero_shot": "SAM without prompt and without training",
    "supervised": "federated averaging on labels of the sites' own images",
    "local_sam": "LoRA and decoder of SAM at every site alone, on its own labels",
    "fedsam": "LoRA and decoder of SAM averaged, on the sites' own labels",
    "full_sam": "all of SAM averaged, on the sites' own labels",
    "pfedsam": "LoRA of SAM averaged; experts and decoder stay at their site; own labels",
    "pfedsam_joint": "pfedsam, all trained in every step: no stages, and no distillation between them",
    "ditto": "no_sam; every site has a network of its own, held near the global one",
    "fedicra": "no_sam; every site mixes the upper layers from its own and the global ones",
    "apple": "no_sam; every site learns how much to take from each other's core model",
    "fca": "no_sam; averaged where sites' updates agree, each site's own where they do not",
    "mean_teacher": "the strong view follows a moving average of the student",
    "unimatch": "two strong views and a feature stream against the student's confident labels",
    "semifl": "sites learn from the global model's labels alone, the server from the public set",
    "no_agreement": "ablation: SAM's label everywhere, and its distillation without the factor g of each image",
    "confidence_selection": "labels chosen and weighed by agreement and confidence, as summaries of the paper put it",
    "no_sam_kd": "ablation: SAM's labels are used, its probabilities are not distilled",
    "no_global_kd": "ablation: no distillation from the round's global network",
    "unadapted_sam": "ablation: SAM as it comes",
    "samfed": "the method, one architecture, weights are averaged",
    "fedmd": "every site learns the mean of all sites' predictions on the public set; otherwise as hssf",
    "fedproto": "class prototypes travel instead of weights",
    "hssf": "regularity condensation and fusion without SAM, on our training",
    "hssf_compat": "hssf with the networks, losses, gates, views, schedule and HD95 of HSSF's code",
    "heterogeneous": "the method where sites' networks differ: soft masks on the public set travel",
    "oracle": "an upper bound that no hospital has: true labels of the sites' own images",
}
"""What each variant is, in one line below the table."""

HETEROGENEOUS = frozenset({"local_only", "fedmd", "fedproto", "hssf", "hssf_compat", "heterogeneous"})
"""Variants in which every site keeps a network of its own."""

OWN_LABELS = frozenset({"zero_shot", "supervised", "local_sam", "fedsam", "full_sam", "pfedsam", "pfedsam_joint"})
"""Variants in which sites learn from labels of their own images, and SAM as it comes, for comparison with these;
a run says it itself, in ``results.json -> own_labels``: these are for runs of before it did."""

ABLATIONS = frozenset({"no_agreement", "confidence_selection", "no_sam_kd", "no_global_kd", "unadapted_sam"})
"""Variants of SAM-Fed itself: no rivals of it."""


def title_of(variant: str) -> str:
    """The title of a variant; an unknown one is its own title."""
    return VARIANTS.get(variant, variant)


def place_of(variant: str) -> int:
    """Where tables show a variant; unknown ones come last."""
    return list(VARIANTS).index(variant) if variant in VARIANTS else len(VARIANTS)


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


@dataclass(frozen=True)
class Cell:
    """Values of one row and column, one per seed.

    Args:
        by_seed: seed to value.
    """

    by_seed: dict[int, float] = field(default_factory=dict)

    @property
    def n(self) -> int:
        return len(self.by_seed)

    @property
    def mean(self) -> float | None:
        return fmean(self.by_seed.values()) if self.by_seed else None

    @property
    def spread(self) -> float | None:
        """Sample standard deviation over seeds; ``None`` with fewer than two."""
        return stdev(self.by_seed.values()) if self.n > 1 else None

    def minus(self, other: Cell) -> Cell:
        """The difference, paired by seed."""
        seeds = sorted(self.by_seed.keys() & other.by_seed.keys())
        return Cell({seed: self.by_seed[seed] - other.by_seed[seed] for seed in seeds})


@dataclass(frozen=True)
class Row:
    """One row: what it ran, its cells by column key, and the share of the gap it closes.

    Args:
        name: the row's name, which is the variant's unless a file of rows gave another.
        seeds: of its runs.
        cells: by column key.
        gap: share of the gap closed.
        variant: which variant it ran, or whose part it plays (``dp_only`` or ``oracle``).
        title, note, sweep: as the file of rows has them, or empty.
        place: its place in the file of rows.
    """

    name: str
    seeds: list[int]
    cells: dict[str, Cell]
    gap: float | None = None
    variant: str = ""
    title: str = ""
    note: str = ""
    sweep: str = ""
    place: int = 0

    @property
    def order(self) -> tuple[int, str, int, str]:
        """Where it stands in a table: known variants first, then the rows of each sweep together."""
        named = (
            self.name if place_of(self.name) < place_of("") or self.variant not in (FLOOR, CEILING) else self.variant
        )
        return place_of(named), self.sweep, self.place, self.name


@dataclass(frozen=True)
class Group:
    """Rows that may be compared: of one setting and one mode.

    Args:
        mode: how their sites learn.
        setting: as the file of rows has it, or empty.
        rows: in the order of tables.
    """

    mode: Mode
    setting: str
    rows: list[Row]

    @property
    def label(self) -> str:
        return f"{self.setting}, {self.mode.name.lower()}" if self.setting else self.mode.name

    @property
    def hero(self) -> Row | None:
        """The method's row."""
        return self.of(self.mode.hero)

    @property
    def references(self) -> list[str]:
        """Variants whose rows the others are subtracted from, as far as the group has them."""
        return [variant for variant in self.mode.references if self.of(variant)]

    @property
    def rivals(self) -> list[Row]:
        """Rows of other methods: neither the method's own, nor the teacher, nor the oracle."""
        own = self.mode.own | {self.mode.hero, TEACHER, CEILING}
        return [row for row in self.rows if row.variant not in own]

    def of(self, variant: str) -> Row | None:
        """The row of a variant: the one that bears its name, else the first that runs it."""
        found = [row for row in self.rows if row.variant == variant]
        return next((row for row in found if row.name == variant), found[0] if found else None)

    def get(self, name: str) -> Row | None:
        """The row of that name."""
        return next((row for row in self.rows if row.name == name), None)


def titled(name: str, variant: str, title: str) -> str:
    """The title of a row: its own, else the variant's where it bears its name, else its name."""
    return title or (title_of(name) if name == variant else name)


def share_of_gap(dice: Cell, floor: Cell, ceiling: Cell) -> float | None:
    """``(row - floor) / (ceiling - floor)`` over the seeds that all have; ``None`` where the ceiling does not lead."""
    seeds = dice.by_seed.keys() & floor.by_seed.keys() & ceiling.by_seed.keys()
    room = sum(ceiling.by_seed[seed] - floor.by_seed[seed] for seed in seeds)
    return sum(dice.by_seed[seed] - floor.by_seed[seed] for seed in seeds) / room if room > 0 else None


def difference(rows: Sequence[Row], name: str, other: str, key: str = "dice") -> Cell:
    """One row's cell minus another's, paired by seed; empty where one of them is missing."""
    by_name = {row.name: row for row in reversed(rows)}
    if name not in by_name or other not in by_name:
        return Cell()
    return by_name[name].cells.get(key, Cell()).minus(by_name[other].cells.get(key, Cell()))
