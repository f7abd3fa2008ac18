"""Rows of a comparison: names of variants, groups of rows, and which row is compared with which."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from samfed_monai.config.variants import Method, methods

if TYPE_CHECKING:
    from samfed_monai.reports.paired import PairedTests

TEACHER, OWN_TEACHER = "teacher", "own_teacher"

_TEACHERS = {
    TEACHER: Method(
        TEACHER, "SAM teacher alone", "the frozen SAM that the students learn from, on the same test images", place=30
    ),
    OWN_TEACHER: Method(
        OWN_TEACHER,
        "SAM teacher alone, each site's own",
        "the same after every site trained its copy further on its own unlabelled images",
        place=40,
    ),
}

_METHODS = dict(sorted((methods() | _TEACHERS).items(), key=lambda item: item[1].place))

VARIANTS = {name: method.title for name, method in _METHODS.items()}
"""Variants in the order of every table, with their titles, as they declare them; and the teachers beside them."""

NOTES = {name: method.note for name, method in _METHODS.items()}
"""What each variant is, in one line below the table."""

HETEROGENEOUS = frozenset(name for name, method in _METHODS.items() if method.kind == "heterogeneous")
"""Variants in which every site keeps a network of its own."""

OWN_LABELS = frozenset(name for name, method in _METHODS.items() if method.kind == "labelled")
"""Variants in which sites learn from labels of their own images, and SAM as it comes, for comparison with these;
a run says it itself, in ``results.json -> own_labels``: these are for runs of before it did."""

ABLATIONS = frozenset(name for name, method in _METHODS.items() if method.kind == "ablation")
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
        gap: whether a row's share of the way from :data:`FLOOR` to :data:`CEILING` is shown.
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
    "Own labels",
    "pFedSAM in one stage",
    "pfedsam",
    frozenset({"pfedsam_two_stage"}),
    ("fedsam", "local_sam"),
    gap=False,
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
        """Its place in a table: known variants first, then the rows of each sweep together."""
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
        paired: their tests image by image.
    """

    mode: Mode
    setting: str
    rows: list[Row]
    paired: PairedTests | None = None

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


def titled(name: str, variant: str, title: str) -> str:
    """The title of a row: its own, else the variant's where it bears its name, else its name."""
    return title or (title_of(name) if name == variant else name)


def share_of_gap(dice: Cell, floor: Cell, ceiling: Cell) -> float | None:
    """``(row - floor) / (ceiling - floor)`` over the seeds that all have; ``None`` where the ceiling does not lead."""
    seeds = dice.by_seed.keys() & floor.by_seed.keys() & ceiling.by_seed.keys()
    room = sum(ceiling.by_seed[seed] - floor.by_seed[seed] for seed in seeds)
    return sum(dice.by_seed[seed] - floor.by_seed[seed] for seed in seeds) / room if room > 0 else None
