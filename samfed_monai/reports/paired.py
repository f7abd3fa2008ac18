"""Whether two rows differ on the test images: signed-rank tests and bootstrap intervals of their differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean

import numpy as np

from samfed_monai.core.words import counted
from samfed_monai.reports.rows import TEACHER, Group, Row
from samfed_monai.reports.run_data import RunData
from samfed_monai.reports.style import as_difference

LEAST = 6
"""Images that a test needs: with five, even five differences of one sign have p = 2 / 2^5 > 0.05."""
ALPHA = 0.05
LEVEL = 0.95
RESAMPLES = 5000

Images = dict[tuple[str, str], float]
"""(site, id) to Dice."""


@dataclass(frozen=True)
class PairedTest:
    """One row against another on the same test images.

    Args:
        row, other: the rows.
        seeds: that both have; an image's Dice is its mean over them.
        images: in common.
        better, worse: of them, those on which the row's Dice is higher or lower.
        difference: mean of the row's Dice minus the other's.
        low, high: ends of its bootstrap interval of :data:`LEVEL`.
        p: of Wilcoxon's signed-rank test, two-sided.
        holm: the same, corrected for all tests of the group.
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

    @property
    def significant(self) -> bool:
        """Whether the corrected p is below :data:`ALPHA`."""
        return self.holm < ALPHA


@dataclass(frozen=True)
class PairedTests:
    """The tests of a group.

    Args:
        tests: in the order of its rows.
        missing: why a row has none, in sentences.
    """

    tests: list[PairedTest] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def signed_rank(differences: Sequence[float]) -> float:
    """p of Wilcoxon's signed-rank test, two-sided; zeros are left out (Wilcoxon, Biometrics Bulletin 1(6), 1945).

    Args:
        differences: (n,) float, one per image. They are taken to be independent, which images of one patient are not.

    Returns:
        p in (0, 1]; 1 where no image differs.
    """
    from scipy.stats import wilcoxon

    apart = [value for value in differences if value]
    return float(wilcoxon(apart).pvalue) if apart else 1.0


def bootstrap_interval(
    differences: Sequence[float], *, level: float | None = None, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean, over images (Efron and Tibshirani, 1993, section 13.3).

    Args:
        differences: (n,) float.
        level: share of intervals that hold the mean, up to 1; ``None`` is :data:`LEVEL`.
        seed: of the resamples: the same numbers have the same interval.
    """
    from scipy.stats import bootstrap

    if len(set(differences)) < 2:
        return differences[0], differences[0]
    drawn = bootstrap(
        (np.asarray(differences),),
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=LEVEL if level is None else level,
        method="percentile",
        batch=500,
        rng=np.random.default_rng(seed),
    )
    return float(drawn.confidence_interval.low), float(drawn.confidence_interval.high)


def holm(values: Sequence[float]) -> list[float]:
    """p values corrected for their number (Holm, Scandinavian Journal of Statistics 6(2), 1979), in the order given."""
    corrected, so_far = [0.0] * len(values), 0.0
    for rank, index in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        so_far = max(so_far, min(1.0, (len(values) - rank) * values[index]))
        corrected[index] = so_far
    return corrected


def paired_tests(group: Group, runs: Mapping[str, Sequence[RunData]]) -> PairedTests:
    """The method's row, or where it is not there the first, against each other row of its group, image by image.

    Only run folders have scores of single images, ``evaluation/<model>/<site>/test/scores.csv``, and only sites whose
    scores the run may show count. On NVIDIA FLARE they stay at their site: there is no test then. Records of runs
    without their folders are silently left out; teachers have no scores of single images.

    Args:
        group: its rows.
        runs: by the row's name.
    """
    rows = [row for row in group.rows if row.variant != TEACHER and row.name in runs]
    if len(rows) < 2 or not all(_is_folder(run.folder) for row in rows for run in runs[row.name]):
        return PairedTests()
    first = group.hero or rows[0]
    tests: list[PairedTest] = []
    missing: dict[str, list[str]] = {}
    for other in rows:
        if other.name == first.name:
            continue
        both = [{run.seed: run for run in runs[row.name]} for row in (first, other)]
        found = _test(first, other, *both)
        if isinstance(found, str):
            missing.setdefault(found, []).append(other.title)
        else:
            tests.append(found)
    corrected = holm([test.p for test in tests])
    return PairedTests(
        [replace(test, holm=p) for test, p in zip(tests, corrected, strict=True)],
        [f"No test per image of {first.title} against {', '.join(titles)}: {why}." for why, titles in missing.items()],
    )


def _test(row: Row, other: Row, mine: Mapping[int, RunData], others: Mapping[int, RunData]) -> PairedTest | str:
    """The test without its correction, or why there is none."""
    seeds = sorted(mine.keys() & others.keys())
    if not seeds:
        return "they have no seed in common"
    by_seed: list[Images] = []
    for seed in seeds:
        left, right = _images(mine[seed]), _images(others[seed])
        if isinstance(left, str):
            return left
        if isinstance(right, str):
            return right
        by_seed.append({image: left[image] - right[image] for image in left if image in right})
    common = set(by_seed[0]).intersection(*by_seed[1:])
    differences = [round(fmean(images[image] for images in by_seed), 9) for image in sorted(common)]
    least = max(LEAST, *(_least_images(run) for seed in seeds for run in (mine[seed], others[seed])))
    if len(differences) < least:
        return f"they have {len(differences)} test images in common, and a test takes at least {least}"
    low, high = bootstrap_interval(differences)
    return PairedTest(
        row=row,
        other=other,
        seeds=len(seeds),
        images=len(differences),
        better=sum(value > 0 for value in differences),
        worse=sum(value < 0 for value in differences),
        difference=fmean(differences),
        low=low,
        high=high,
        p=signed_rank(differences),
    )


def _images(run: RunData) -> Images | str:
    """Dice of every test image that counts in the run's average, or why that is not known."""
    found: Images = {}
    for site, splits in run.results["sites"].items():
        expected = splits["test"]["n"]
        rows = run.image_scores(site) if expected else []
        if len(rows) != expected:
            where = f"{run.folder.name} has no scores of the single images of {site}"
            if rows:
                where = f"{run.folder.name} has scores of {len(rows)} of {expected} images of {site}"
            return f"{where} (on NVIDIA FLARE they stay at the site)"
        found |= {(site, row["id"]): row["dice"] for row in rows}
    return found


def _least_images(run: RunData) -> int:
    return int((run.results.get("privacy") or {}).get("least_images") or 0)


def _is_folder(folder: Path) -> bool:
    return (folder / "results.json").is_file()


def as_p(value: float) -> str:
    """A p value: three decimals, and what is below them as such."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def test_sentence(test: PairedTest) -> str:
    """A test per image, in words."""
    pair = f"{test.row.title} and {test.other.title} on the same {counted(test.images, 'test image')}"
    if not (test.better or test.worse):
        return f"{pair}: Dice is the same on every image."
    seeds = f", each the mean of {test.seeds} seeds" if test.seeds > 1 else ""
    p = as_p(test.holm)
    p = p if p.startswith("<") else f"= {p}"
    size = f"{abs(test.difference):.3f}"
    word = f"{'higher' if test.difference > 0 else 'lower'} by {size}" if float(size) else "equal to three decimals"
    means = (
        "Chance among images alone seldom makes such a difference"
        if test.significant
        else "These images do not tell the two apart"
    )
    return (
        f"{pair}{seeds}: Dice is {word} on average "
        f"({100 * LEVEL:.0f} % interval {as_difference(test.low)} to {as_difference(test.high)}), "
        f"higher on {counted(test.better, 'image')} and lower on {test.worse}. "
        f"{means} (p {p})."
    )
