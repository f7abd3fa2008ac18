"""Scores of sites, and of all of them together (docs/method.md)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from samfed_monai.federation.envelope import Envelope

NAMES = ("dice", "iou", "hd95")
EMPTY = ("both", "prediction", "label")


def site_scores(reply: Envelope) -> dict[str, Any]:
    """``{"dice", "iou", "hd95", "n", "empty": {"both", "prediction", "label"}}`` of one site's answer.

    A score that the site did not send is ``None``; HD95 is in pixels at the evaluation size.
    """
    scores: dict[str, Any] = {name: reply.metrics.get(name) for name in NAMES}
    empty = {side: int(reply.metrics.get(f"empty_{side}", 0)) for side in EMPTY}
    return {**scores, "n": reply.n, "empty": empty}


def average(sites: Mapping[str, Mapping[str, Any]], *, skip_empty: bool = False) -> dict[str, Any]:
    """Mean over all images of all sites, and the sums of their counts; ``None`` where no site has a score.

    Unlike :func:`samfed_monai.metrics.pool` it takes what foreign clients send: a score that a site lacks does not
    count.

    Args:
        sites: what :func:`site_scores` returned for each.
        skip_empty: as the sites' HD95 were made: each is then the mean over the images without an empty mask only,
            and weighs as many.
    """
    result: dict[str, Any] = {}
    for name in NAMES:
        without_empty = skip_empty and name == "hd95"
        scored = [
            (scores["n"] - (sum(scores["empty"].values()) if without_empty else 0), scores[name])
            for scores in sites.values()
            if scores[name] is not None and scores["n"]
        ]
        total = sum(n for n, _ in scored)
        result[name] = sum(n * value for n, value in scored) / total if total else None
    result["n"] = sum(scores["n"] for scores in sites.values())
    result["empty"] = {side: sum(scores["empty"][side] for scores in sites.values()) for side in EMPTY}
    return result


def worst(sites: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """The scores of the site with the lowest Dice, with its name under ``site``; the first by name among equals."""
    scored = [(scores["dice"], site) for site, scores in sites.items() if scores["dice"] is not None]
    if not scored:
        return None
    site = min(scored)[1]
    return {"site": site, **sites[site]}
