"""Rows of a comparison and the groups that they are compared in: one setting and one mode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev

from samfed_monai.reports.modes import CEILING, FLOOR, Mode
from samfed_monai.reports.variant_names import TEACHER, place_of, title_of


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
