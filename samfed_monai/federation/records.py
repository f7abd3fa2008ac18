"""What is written down of a round."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from samfed_monai.federation.envelope import Envelope
from samfed_monai.federation.failure import Failure
from samfed_monai.federation.transport import Traffic
from samfed_monai.metrics import pool, worst


def site_record(
    reply: Envelope | Failure, scores: Mapping[str, Any] | None, unscored: str | None, traffic: Traffic | None
) -> dict[str, Any]:
    """One site's part of ``round.json``.

    Args:
        reply: its answer to the training message.
        scores: its scores of the aggregated model on its validation images.
        unscored: why there are none.
        traffic: its bytes in this round.

    With differential privacy, ``releases`` is how many messages with noise the site has sent in this run so far.
    """
    traffic = traffic or Traffic()
    record: dict[str, Any] = {"status": "skipped", "reason": None, "n": None, "seconds": None, "terms": {}}
    if isinstance(reply, Failure):
        record["reason"] = reply.reason
    else:
        terms = {name[len("term_") :]: value for name, value in reply.metrics.items() if name.startswith("term_")}
        record.update(status="ok", n=reply.n, seconds=reply.metrics.get("seconds"), terms=terms)
        if "releases" in reply.metrics:
            record["releases"] = int(reply.metrics["releases"])
    record.update(validation=dict(scores) if scores else None, unscored=unscored)
    record.update(up_bytes=traffic.up, down_bytes=traffic.down)
    return record


def round_record(
    round: int, rounds: int, sites: Mapping[str, Any], seconds: Mapping[str, float], *, skip_empty: bool = False
) -> dict[str, Any]:
    """``round.json`` without the hashes of its files.

    Seconds are those up to the moment the record is made; ``controller`` includes the writing of the round before.
    """
    scored = {site: entry["validation"] for site, entry in sites.items() if entry["validation"]}
    return {
        "schema": 1,
        "round": round,
        "rounds": rounds,
        "sites": dict(sites),
        "average": {"validation": pool(scored.values(), skip_empty=skip_empty)},
        "worst": {"validation": worst(scored)},
        "seconds": dict(seconds),
    }


def told(record: Mapping[str, Any]) -> str:
    """One line about a round: ``round 3 of 30: validation Dice 0.834, lowest 0.790 (site-2), 18 s``."""
    dice, lowest = record["average"]["validation"]["dice"], record["worst"]["validation"]
    parts = [f"validation Dice {dice:.3f}"] if dice is not None else ["no validation scores"]
    if lowest is not None:
        parts.append(f"lowest {lowest['dice']:.3f} ({lowest['site']})")
    skipped = sorted(site for site, entry in record["sites"].items() if entry["status"] != "ok")
    if skipped:
        parts.append(f"skipped {', '.join(skipped)}")
    parts.append(f"{sum(record['seconds'].values()):.0f} s")
    return f"round {record['round'] + 1} of {record['rounds']}: {', '.join(parts)}"


def round_traffic(record: Mapping[str, Any]) -> dict[str, int]:
    """``up_bytes`` and ``down_bytes`` of a round, over all sites."""
    return {name: sum(entry[name] for entry in record["sites"].values()) for name in ("up_bytes", "down_bytes")}


def total_traffic(records: Iterable[Mapping[str, Any]], others: Iterable[Traffic]) -> dict[str, int]:
    """``up_bytes`` and ``down_bytes`` of all rounds, and of what was sent beside them."""
    counted = [round_traffic(record) for record in records]
    counted += [{"up_bytes": other.up, "down_bytes": other.down} for other in others]
    return {name: sum(each[name] for each in counted) for name in ("up_bytes", "down_bytes")}


def skipped(records: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Every answer that was left out: ``{"round", "site", "reason"}``."""
    return [
        {"round": record["round"], "site": site, "reason": entry["reason"]}
        for record in records
        for site, entry in record["sites"].items()
        if entry["status"] != "ok"
    ]
