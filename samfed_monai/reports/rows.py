"""Rows of a comparison: titles of variants, groups of rows, references of each group, and tests per image."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, stdev
from typing import Any

import numpy as np

from samfed_monai.config.method import Method
from samfed_monai.config.variants import methods
from samfed_monai.core.text import counted
from samfed_monai.reports.run_data import RunData
from samfed_monai.reports.style import as_difference

TEACHER = "teacher"

_NOTE = "the frozen SAM that the students learn from, on the same test images"
_TEACHER_METHOD = Method(TEACHER, "SAM teacher alone", _NOTE, place=30)

_METHODS = dict(sorted({**methods(), TEACHER: _TEACHER_METHOD}.items(), key=lambda item: item[1].place))

VARIANTS = {name: method.title for name, method in _METHODS.items()}
"""Titles of variants, and of the teacher, in the order of tables."""

NOTES = {name: method.note for name, method in _METHODS.items()}
"""A one-line description of each variant, for below the table."""

ABLATIONS = frozenset(name for name, method in _METHODS.items() if method.kind == "ablation")
"""Variants of SAM-Fed itself, which do not count as other methods."""


def title_of(variant: str) -> str:
    """Returns the title of a variant, or its name if it is unknown."""
    return VARIANTS.get(variant, variant)


def place_of(variant: str) -> int:
    """Returns the position of a variant in tables; unknown variants come last."""
    return list(VARIANTS).index(variant) if variant in VARIANTS else len(VARIANTS)


FLOOR, CEILING = "dp_only", "oracle"
"""The variants between which the gap closed is measured (docs/method.md)."""


@dataclass(frozen=True)
class Mode:
    """How the sites of a run learn; rows of different modes are shown in separate tables.

    Args:
        name: heading of a group.
        method: name of the method in sentences and headings.
        hero: the method's variant.
        own: its other variants, which do not count as other methods.
        references: variants whose Dice is subtracted from that of the other rows, by seed.
        gap: whether a row's share of the gap from :data:`FLOOR` to :data:`CEILING` is shown.
    """

    name: str
    method: str
    hero: str
    own: frozenset[str]
    references: tuple[str, ...]
    gap: bool = True


ONE_NETWORK = Mode("Homogeneous", "SAM-Fed", "samfed", ABLATIONS, (FLOOR,))
DIFFERENT_NETWORKS = Mode("Heterogeneous", "SAM-Fed", "heterogeneous", ABLATIONS, (FLOOR, "hssf", "local_only"))
_TWO_STAGES = frozenset({"pfedsam_two_stage"})
LABELLED = Mode("Own labels", "pFedSAM in one stage", "pfedsam", _TWO_STAGES, ("fedsam", "local_sam"), gap=False)

MODES = (ONE_NETWORK, DIFFERENT_NETWORKS, LABELLED)
"""Modes in the order of tables."""


def mode_of(results: Mapping[str, Any]) -> Mode:
    """Returns the mode of a run: whether sites learned from own labels, or had different networks."""
    if results.get("own_labels"):
        return LABELLED
    networks = {network for site, network in results.get("networks", {}).items() if site in results["sites"]}
    variant = _METHODS.get(results["variant"])
    different = len(networks) > 1 or results.get("exchange") in ("predictions", "prototypes")
    return DIFFERENT_NETWORKS if different or (variant and variant.kind == "heterogeneous") else ONE_NETWORK


@dataclass(frozen=True)
class Cell:
    """Values of one row and column.

    Args:
        by_seed: value by seed.
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
        """Returns the difference, paired by seed."""
        seeds = sorted(self.by_seed.keys() & other.by_seed.keys())
        return Cell({seed: self.by_seed[seed] - other.by_seed[seed] for seed in seeds})


@dataclass(frozen=True)
class Row:
    """One row of a comparison.

    Args:
        name: the row's name: the variant's, unless a file of rows gives another.
        seeds: seeds of its runs.
        cells: cells by column key.
        gap: share of the gap closed.
        variant: the variant of its runs, or the variant that it replaces (``dp_only`` or ``oracle``).
        title, note, sweep: from the file of rows, or empty.
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
        """Sort key in a table: known variants first, then the rows of each sweep together."""
        is_replacement = self.name not in VARIANTS and self.variant in (FLOOR, CEILING)
        return place_of(self.variant if is_replacement else self.name), self.sweep, self.place, self.name


@dataclass(frozen=True)
class Group:
    """Rows of one setting and one mode, which may be compared.

    Args:
        mode: how their sites learn.
        setting: from the file of rows, or empty.
        rows: in the order of tables.
        tests: tests per image between rows.
        untested: sentences on rows without a test.
    """

    mode: Mode
    setting: str
    rows: list[Row]
    tests: list[PairedTest] = field(default_factory=list)
    untested: list[str] = field(default_factory=list)

    @property
    def label(self) -> str:
        return f"{self.setting}, {self.mode.name.lower()}" if self.setting else self.mode.name

    @property
    def hero(self) -> Row | None:
        """The method's row."""
        return self.of(self.mode.hero)

    @property
    def references(self) -> list[str]:
        """The mode's reference variants that the group has."""
        return [variant for variant in self.mode.references if self.of(variant)]

    @property
    def rivals(self) -> list[Row]:
        """Rows of other methods: neither the method's own, nor the teacher, nor the oracle."""
        own = self.mode.own | {self.mode.hero, TEACHER, CEILING}
        return [row for row in self.rows if row.variant not in own]

    def of(self, variant: str) -> Row | None:
        """Returns the row of a variant: the one with its name, else the first that runs it."""
        found = [row for row in self.rows if row.variant == variant]
        return next((row for row in found if row.name == variant), found[0] if found else None)

    def dice_of(self, variant: str) -> Cell:
        """Returns the average test Dice of the row of a variant; empty if there is none."""
        row = self.of(variant)
        return row.cells["dice"] if row else Cell()


MIN_IMAGES = 6
"""Fewest images for a test: with five, even five differences of one sign have p = 2 / 2^5 > 0.05."""
ALPHA = 0.05
LEVEL = 0.95
RESAMPLES = 5000


@dataclass(frozen=True)
class PairedTest:
    """A paired test of two rows on the same test images.

    Args:
        row, other: the rows.
        seeds: number of common seeds; an image's Dice is its mean over them.
        images: number of common images.
        better, worse: number of images on which the row's Dice is higher or lower.
        difference: mean of the row's Dice minus the other's.
        low, high: its bootstrap interval at :data:`LEVEL`.
        p: p value of Wilcoxon's signed-rank test, two-sided.
        holm: p corrected for all tests of the group.
    """

    row: Row
    other: Row
    seeds: int
    images: int
    better: int
    worse: int
    difference: float
    low: float
    high: float
    p: float
    holm: float = 1.0

    def sentence(self) -> str:
        """Returns the test as a sentence."""
        pair = f"{self.row.title} and {self.other.title} on the same {counted(self.images, 'test image')}"
        if not (self.better or self.worse):
            return f"{pair}: Dice is the same on every image."
        seeds = f", each the mean of {self.seeds} seeds" if self.seeds > 1 else ""
        p, size = as_p(self.holm), f"{abs(self.difference):.3f}"
        word = f"{'higher' if self.difference > 0 else 'lower'} by {size}" if float(size) else "equal to three decimals"
        meaning = "These images show no significant difference"
        if self.holm < ALPHA:
            meaning = "Such a difference is unlikely to be chance among images"
        return (
            f"{pair}{seeds}: Dice is {word} on average "
            f"({100 * LEVEL:.0f} % interval {as_difference(self.low)} to {as_difference(self.high)}), "
            f"higher on {counted(self.better, 'image')} and lower on {self.worse}. "
            f"{meaning} (p {p if p.startswith('<') else f'= {p}'})."
        )


def as_p(value: float) -> str:
    """Formats a p value with three decimals; smaller ones as ``< 0.001``."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def signed_rank(differences: Sequence[float]) -> float:
    """Wilcoxon's two-sided signed-rank test, without zeros (Wilcoxon, Biometrics Bulletin 1(6), 1945).

    Args:
        differences: (n,) float, one per image. Assumed to be independent, which images of one patient are not.

    Returns:
        p in (0, 1]; 1 if no image differs.
    """
    from scipy.stats import wilcoxon

    nonzero = [value for value in differences if value]
    return float(wilcoxon(nonzero).pvalue) if nonzero else 1.0


def bootstrap_interval(differences: Sequence[float], *, level: float = LEVEL) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean over images (Efron and Tibshirani, 1993, section 13.3), deterministic.

    Args:
        differences: (n,) float.
        level: confidence level, up to 1.
    """
    from scipy.stats import bootstrap

    if len(set(differences)) < 2:
        return differences[0], differences[0]
    options = {"n_resamples": RESAMPLES, "batch": 500, "method": "percentile", "rng": np.random.default_rng(0)}
    result = bootstrap((np.asarray(differences),), np.mean, confidence_level=level, **options).confidence_interval
    return float(result.low), float(result.high)


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """95 % bootstrap interval of the mean over images; ``None`` for fewer than two.

    The expanded percentile interval of Hesterberg (The American Statistician 69(4), 2015, section 4.2): its tails are
    those of Student's t, as plain percentiles are too narrow for few images.

    Args:
        values: one per image.
    """
    from scipy.stats import norm, t

    n = len(values)
    if n < 2:
        return None
    tail = norm.cdf(t.ppf((1 - LEVEL) / 2, n - 1) * math.sqrt(n / (n - 1)))
    return bootstrap_interval(values, level=1 - 2 * float(tail))


def holm(values: Sequence[float]) -> list[float]:
    """Corrects p values for multiple tests, in order (Holm, Scandinavian Journal of Statistics 6(2), 1979)."""
    corrected, largest = [0.0] * len(values), 0.0
    for rank, index in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        largest = max(largest, min(1.0, (len(values) - rank) * values[index]))
        corrected[index] = largest
    return corrected


def with_tests(group: Group, runs: Mapping[str, Sequence[RunData]]) -> Group:
    """Adds to a group the tests of the method's row, or else of the first row, against each other row.

    Tests need the scores of single images in the run folders, ``evaluation/<model>/<site>/test/scores.csv``, of all
    sites with test scores. On NVIDIA FLARE these stay at the sites, so there is no test. No tests are made if a run has
    only a record without its folder; teachers have no scores of single images.

    Args:
        group: the group.
        runs: runs by the row's name.
    """
    rows = [row for row in group.rows if row.variant != TEACHER and row.name in runs]
    if len(rows) < 2 or not all((run.folder / "results.json").is_file() for row in rows for run in runs[row.name]):
        return group
    first, tests, missing = group.hero or rows[0], list[PairedTest](), dict[str, list[str]]()
    for other in rows:
        if other.name != first.name:
            try:
                tests.append(_test(first, other, runs[first.name], runs[other.name]))
            except _Untested as why:
                missing.setdefault(str(why), []).append(other.title)
    tests = [replace(test, holm=p) for test, p in zip(tests, holm([test.p for test in tests]), strict=True)]
    against = f"No test per image of {first.title} against"
    untested = [f"{against} {', '.join(names)}: {why}." for why, names in missing.items()]
    return replace(group, tests=tests, untested=untested)


class _Untested(Exception):
    """The reason why two rows have no test."""


def _test(row: Row, other: Row, runs: Sequence[RunData], others: Sequence[RunData]) -> PairedTest:
    """Returns the test without the correction for multiple tests."""
    left, right = ({run.seed: run for run in each} for each in (runs, others))
    seeds = sorted(left.keys() & right.keys())
    if not seeds:
        raise _Untested("they have no seed in common")
    pairs = [(_image_dices(left[seed]), _image_dices(right[seed])) for seed in seeds]
    common = sorted(set.intersection(*(set(ids) for pair in pairs for ids in pair)))
    gaps = [round(fmean(first[image] - second[image] for first, second in pairs), 9) for image in common]
    results = [run.results for seed in seeds for run in (left[seed], right[seed])]
    least = max(MIN_IMAGES, *(int((each.get("privacy") or {}).get("least_images") or 0) for each in results))
    if len(gaps) < least:
        raise _Untested(f"they have {len(gaps)} test images in common, but a test needs at least {least}")
    better, worse = sum(value > 0 for value in gaps), sum(value < 0 for value in gaps)
    numbers = (len(seeds), len(gaps), better, worse, fmean(gaps), *bootstrap_interval(gaps), signed_rank(gaps))
    return PairedTest(row, other, *numbers)


def _image_dices(run: RunData) -> dict[tuple[str, str], float]:
    """Returns the Dice of every test image in the run's average by (site, id)."""
    found: dict[tuple[str, str], float] = {}
    for site, splits in run.results["sites"].items():
        expected = splits["test"]["n"]
        rows = run.image_scores(site) if expected else []
        if len(rows) != expected:
            what = f"scores of {len(rows)} of {expected} images" if rows else "no scores of the single images"
            raise _Untested(f"{run.folder.name} has {what} of {site} (on NVIDIA FLARE they stay at the site)")
        found |= {(site, row["id"]): row["dice"] for row in rows}
    return found
