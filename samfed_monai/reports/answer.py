"""The end of a run in three lines: how good the model is, where everything is, and what to type next."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from samfed_monai.config.bundles import bundle_of_command
from samfed_monai.core.words import counted
from samfed_monai.metrics import BESIDE
from samfed_monai.reports.paired import LEVEL, bootstrap_interval
from samfed_monai.reports.run_data import RunData
from samfed_monai.reports.trust import trust

_MOST_NAMES = 3  # of sites in a sentence


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Bootstrap interval of 95 % of the mean over images; ``None`` of fewer than two.

    The expanded percentile interval of Hesterberg (The American Statistician 69(4), 2015, section 4.2): its tails are
    those of Student's t, since plain percentiles of few images are too narrow.

    Args:
        values: one per image.
    """
    from scipy.stats import norm, t

    n = len(values)
    if n < 2:
        return None
    tail = norm.cdf(t.ppf((1 - LEVEL) / 2, n - 1) * math.sqrt(n / (n - 1)))
    return bootstrap_interval(values, level=1 - 2 * float(tail))


def spread(run: RunData, sites: Sequence[str] | None = None, split: str = "test") -> str:
    """The interval of a run's Dice over the images of a split: ``0.71 to 0.85``.

    Args:
        run: finished.
        sites: whose images; ``None``: of all sites that trained.
        split: ``test`` or ``validation``.

    Returns:
        "" of fewer than two images, and where the table of a site is not here, as on FLARE.
    """
    everywhere = {**(run.results.get("unseen") or {}), **run.results["sites"]}
    tables = {site: run.image_scores(site, split=split) for site in (run.sites if sites is None else sites)}
    if any(len(rows) != (everywhere[site].get(split) or {"n": 0})["n"] for site, rows in tables.items()):
        return ""
    found = interval([row["dice"] for rows in tables.values() for row in rows])
    return "" if found is None else f"{found[0]:.2f} to {found[1]:.2f}"


def answer(run: RunData) -> list[str]:
    """How good a finished run's model is, where model and report are, and the command that draws masks with it.

    Args:
        run: finished.
    """
    results, folder = run.results, str(run.folder)
    number = results["models"][results["selected"]].get("round")
    round = "" if number is None else f", round {number + 1} of {results['rounds']}"
    if number == -1:  # of the schema: the network that the rounds began with
        scores = "{by} {start:.3f}, in the best round {rounds:.3f}".format(**results["against_start"])
        round = f", the network that the run began with, as no round is better ({scores})"
    site = ["--site", run.sites[0]] if run.own_models else []
    bundle = bundle_of_command(results.get("command")) or "BUNDLE"
    words = ["samfed", "infer", bundle, "IMAGES", "--model", folder, *site, "--output-dir", "MASKS"]
    return [
        _how_good(run),
        f"model: {folder}{round}; report: {run.folder / 'report.html'}",
        f"next: {shlex.join(words)}",
    ]


def _how_good(run: RunData) -> str:
    """``test Dice 0.79 (0.71 to 0.85, 6 images at A; B has no masks)``; of validation where no test image has one."""
    split = next((name for name in ("test", "validation") if run.results["average"][name]["n"]), None)
    if split is None:
        return "; ".join(["no Dice", *_without_dice(run, run.sites, "test")])
    summary = run.results["average"][split]
    measured = [site for site in run.sites if run.results["sites"][site][split]["n"]]
    where = ", ".join(measured) if len(measured) <= _MOST_NAMES else counted(len(measured), "site")
    images = f"{counted(summary['n'], 'image')} at {where}"
    said = ", ".join(filter(None, [spread(run, measured, split), images]))
    others = _without_dice(run, [site for site in run.sites if site not in measured], split)
    chose = "" if split == "test" else ", which chose the round: expect less on new images"
    return f"{split} Dice {summary['dice']:.2f} ({'; '.join([said, *others])}){chose}"


def _without_dice(run: RunData, sites: Sequence[str], split: str) -> list[str]:
    """What is said of sites without a Dice, one after the other; of many, how many they are."""
    if len(sites) > _MOST_NAMES:
        return [f"{len(sites)} sites have no score"]
    held = {each["site"] for each in (run.results.get("privacy") or {}).get("withheld", []) if each["split"] == split}
    found, apart, promised = [], run.student_and_teacher(), {each.site: each for each in trust(run)}
    for site in sites:
        agree = f", student and teacher agree by a Dice of {fmean(apart[site]):.2f}" if site in apart else ""
        agree += f", expected Dice {promised[site].expected:.2f}" if site in promised else ""
        found.append(f"{site} withheld its score" if site in held else f"{site} has no masks{agree}")
    return found


def more_scores(run: RunData) -> list[dict[str, Any]]:
    """Test scores beside Dice by site and unseen hospital, for the report; a number that a site did not send is
    ``None``."""
    everywhere = {**run.results["sites"], **(run.results.get("unseen") or {})}
    tests = {site: splits["test"] for site, splits in everywhere.items() if splits.get("test", {}).get("n")}
    names = ("dice", *BESIDE, "n")
    return [
        {"site": site, "spread": spread(run, [site]), **{name: summary.get(name) for name in names}}
        for site, summary in tests.items()
    ]
