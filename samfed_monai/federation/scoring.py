"""The scores that a site's answer holds."""

from __future__ import annotations

from typing import Any

from samfed_monai.federation.envelope import Envelope
from samfed_monai.metrics.scores import EMPTY, NAMES


def site_scores(reply: Envelope) -> dict[str, Any]:
    """``{"dice", "iou", "hd95", "n", "empty": {"both", "prediction", "label"}}`` of one site's answer.

    A score that the site did not send is ``None``; HD95 is in pixels at the evaluation size.
    """
    scores: dict[str, Any] = {name: reply.metrics.get(name) for name in NAMES}
    empty = {side: int(reply.metrics.get(f"empty_{side}", 0)) for side in EMPTY}
    return {**scores, "n": reply.n, "empty": empty}
