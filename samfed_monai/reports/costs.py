"""What a run cost: seconds by activity, bytes by direction, and one image of each network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ACTIVITIES = {
    "teacher": "Teacher",
    "soft_masks": "Soft masks",
    "warm_start": "Warm start",
    "training": "Training at the sites",
    "server": "Training at the server",
    "evaluation": "Evaluation",
    "controller": "Aggregation and storing",
}
REST = "Checks and the rest"


def costs_of(results: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Rows of the tables of a report.

    Args:
        results: of ``results.json``.

    Returns:
        ``seconds``: ``title``, ``seconds`` and ``share`` of the whole in [0, 1], of every activity that took time;
        ``traffic``: ``title``, ``up`` and ``down`` in bytes, the whole last; ``images``: ``title``, ``parameters`` and
        ``milliseconds`` of each network of the sites, and of the teacher, and ``memory_bytes``, which is ``None`` where
        nobody measured it.
    """
    total = results["seconds"]["total"]
    took = {title: results["seconds"].get(name, 0.0) for name, title in ACTIVITIES.items()}
    took[REST] = max(0.0, total - sum(took.values()))
    least = 0.0005 * total  # less than a thousandth would read "0 %", and beginnings and ends of clocks are such
    seconds = [
        {"title": title, "seconds": value, "share": value / total} for title, value in took.items() if value > least
    ]
    return {"seconds": seconds, "traffic": _traffic(results), "images": _images(results)}


def _traffic(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    traffic = results["traffic"]
    parts = {"Rounds, evaluation": (traffic["up_bytes"], traffic["down_bytes"])}
    if "up_bytes_before" in traffic:
        parts = {"Before the rounds": (traffic["up_bytes_before"], traffic["down_bytes_before"]), **parts}
    rows = [{"title": title, "up": up, "down": down} for title, (up, down) in parts.items()]
    if "up_bytes_per_round" in traffic:
        each = {"up": traffic["up_bytes_per_round"], "down": traffic["down_bytes_per_round"]}
        rows.append({"title": "of that, a round", **each})
    whole = {way: sum(values) for way, values in zip(("up", "down"), zip(*parts.values(), strict=True), strict=True)}
    return [*rows, {"title": "All", **whole}]


def _images(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    costs = dict(results.get("costs", {}))
    teacher = results.get("teacher") or {}
    if "milliseconds" in teacher:
        costs["the teacher"] = teacher
    return [
        {
            "title": name,
            **{key: cost[key] for key in ("parameters", "milliseconds")},
            "memory_bytes": cost.get("memory_bytes"),
        }
        for name, cost in costs.items()
    ]
