"""From the scores of images to the score of a site, and from the scores of sites to that of all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import Any

from samfed_monai.metrics.scores import Scores

NAMES = ("dice", "iou", "hd95")
EMPTY = ("both", "prediction", "label")


def summarise(scores: Iterable[Scores], *, skip_empty: bool = False) -> dict[str, Any]:
    """Means over images, with the number of empty masks beside them.

    Args:
        scores: one per image.
        skip_empty: leave images with an empty mask out of the mean of HD95, as HSSF's tables do (Dice and IoU still
            count them). Only for comparison with published tables: a network that predicts nothing looks better.

    Returns:
        ``{"dice", "iou", "hd95", "n", "empty": {"both", "prediction", "label"}}``; a mean over no image is ``None``.
    """
    table = list(scores)
    measured = [score for score in table if score.empty == "none"] if skip_empty else table
    empty: Counter[str] = Counter(score.empty for score in table)
    return {
        "dice": _mean(score.dice for score in table),
        "iou": _mean(score.iou for score in table),
        "hd95": _mean(score.hd95 for score in measured),
        "n": len(table),
        "empty": {which: empty[which] for which in EMPTY},
    }


def pool(summaries: Iterable[Mapping[str, Any]], *, skip_empty: bool = False) -> dict[str, Any]:
    """The summary of all images behind several summaries, as :func:`summarise` would give it.

    A mean that a summary lacks (``None``: no images, or a foreign client that did not send it) does not count.

    Args:
        summaries: what :func:`summarise` returned for each site.
        skip_empty: as the summaries were made: HD95 is then weighted by the images without an empty mask.
    """
    parts = list(summaries)
    images = [part["n"] for part in parts]
    measured = [part["n"] - sum(part["empty"].values()) for part in parts] if skip_empty else images
    return {
        **{name: _weighted(parts, name, measured if name == "hd95" else images) for name in NAMES},
        "n": sum(images),
        "empty": {which: sum(part["empty"][which] for part in parts) for which in EMPTY},
    }


def worst(sites: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """The summary of the site with the lowest Dice, its name under ``site``; the first by name among equals.

    Args:
        sites: what :func:`summarise` returned for each.

    Returns:
        ``None`` where no site has a Dice.
    """
    scored = [(summary["dice"], site) for site, summary in sites.items() if summary["dice"] is not None]
    if not scored:
        return None
    site = min(scored)[1]
    return {"site": site, **sites[site]}


def convention(*, pooled: bool = False, skip_empty: bool = False) -> dict[str, str]:
    """What HD95 means and what an empty mask counts, as ``convention`` of ``results.json`` states it.

    Args:
        pooled: as in :func:`samfed_monai.metrics.hausdorff95`.
        skip_empty: as in :func:`summarise`.

    Returns:
        ``{"hd95": "max of directed" | "pooled", "empty": "diagonal" | "skipped"}``.
    """
    return {"hd95": "pooled" if pooled else "max of directed", "empty": "skipped" if skip_empty else "diagonal"}


def _mean(values: Iterable[float]) -> float | None:
    numbers = list(values)
    return fmean(numbers) if numbers else None


def _weighted(parts: list[Mapping[str, Any]], name: str, weights: list[int]) -> float | None:
    counted = [(part[name], n) for part, n in zip(parts, weights, strict=True) if n and part[name] is not None]
    total = sum(n for _, n in counted)
    return sum(value * n for value, n in counted) / total if total else None
