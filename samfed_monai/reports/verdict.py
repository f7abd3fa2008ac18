"""How the method stands to the other rows, computed from the paired differences: never written by hand."""

from __future__ import annotations

from dataclasses import dataclass

from samfed_monai.reports.numbers import as_difference
from samfed_monai.reports.rows import Cell, Group, Row

LEADS, LEVEL, TRAILS = "leads", "within the spread", "trails"


@dataclass(frozen=True)
class Standing:
    """The method's row against one other.

    Args:
        other: the other row.
        dice, worst, hd95, unseen: the method's value minus the other's, by seed.
    """

    other: Row
    dice: Cell
    worst: Cell
    hd95: Cell
    unseen: Cell

    @property
    def ahead(self) -> int:
        """Number of seeds in which the method's Dice is higher."""
        return sum(value > 0 for value in self.dice.by_seed.values())

    @property
    def word(self) -> str:
        """``leads`` or ``trails`` where the mean difference is larger than its spread over seeds."""
        return word_of(self.dice)


def word_of(difference: Cell) -> str:
    """What a paired difference says: it counts only where its mean is larger than its spread over seeds."""
    mean, spread = difference.mean, difference.spread
    if mean is None:
        return "no seed in common"
    if spread is None:
        return "one seed"
    if abs(mean) <= spread:
        return LEVEL
    return LEADS if mean > 0 else TRAILS


def standings(group: Group) -> list[Standing]:
    """The method's row against every other row of its group, in the order of the table; none without its row."""
    hero = group.hero
    if hero is None:
        return []
    keys = ("dice", "worst", "hd95", "unseen")
    return [
        Standing(row, *(hero.cells.get(key, Cell()).minus(row.cells.get(key, Cell())) for key in keys))
        for row in group.rows
        if row is not hero
    ]


def verdict(group: Group) -> str | None:
    """Whether the method leads the strongest other method, by how much, and against which spread.

    Where it leads that one and yet no other, which scatters more, a second sentence names the other. Then comes
    how the two stand at the worst site, and on the hospitals that took no part, if any was measured.

    The teacher, the oracle, ablations and sweeps of the method are no other methods. ``None`` without the method's row,
    or where no other method has a seed in common with it.
    """
    rivals = {row.name for row in group.rivals}
    found = [standing for standing in standings(group) if standing.other.name in rivals and standing.dice.n]
    if not found:
        return None
    closest = min(found, key=lambda standing: standing.dice.mean or 0.0)
    cell, other = closest.dice, f"{closest.other.title} (`{closest.other.name}`)"
    seeds = f"ahead in {closest.ahead} of {cell.n} seeds"
    mean, method = as_difference(cell.mean or 0.0), group.mode.method
    if cell.spread is None:
        return f"One seed: {method}'s Dice is {mean} to the strongest other row, {other}; no spread, no verdict."
    by = f"Dice {mean} ± {cell.spread:.3f} to the strongest other row, {other}; {seeds}."
    level = [standing.other.title for standing in found if standing.word == LEVEL and standing is not closest]
    but = f" Within the spread of: {', '.join(level)}." if level else ""
    more = _told("At the worst site", closest.worst) + _told("On hospitals that took no part", closest.unseen)
    return {
        LEADS: f"{method} leads, by more than the spread: {by}{but}{more}",
        LEVEL: f"{method} neither leads nor trails beyond the spread: {by}{more}",
        TRAILS: f"{method} does not lead: {by}{more}",
    }[closest.word]


def _told(where: str, cell: Cell) -> str:
    if cell.mean is None or cell.spread is None:
        return ""
    word = {LEADS: "it leads", TRAILS: "it trails"}.get(word_of(cell), word_of(cell))
    return f" {where}: {as_difference(cell.mean)} ± {cell.spread:.3f}, {word}."
