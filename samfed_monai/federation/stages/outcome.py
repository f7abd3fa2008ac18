"""What the rounds of a run came to, in the words of ``results.json``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from samfed_monai.federation.records import round_traffic, skipped

if TYPE_CHECKING:
    from samfed_monai.federation.controller import RunResult
    from samfed_monai.federation.stages.cast import Cast


def outcome(result: RunResult, cast: Cast) -> dict[str, Any]:
    """Those arguments of :func:`samfed_monai.results.build_results` that the rounds decide."""
    return {
        "scores": {name: model["sites"] for name, model in result.models.items()},
        "model_rounds": {name: model["round"] for name, model in result.models.items()},
        "unseen": {name: model["unseen"] for name, model in result.models.items()} if cast.unseen else None,
        "networks": cast.networks,
        "exchange": cast.exchange,
        "own_models": cast.strategy.keeps_states,
        "own_labels": cast.supervised,
        "traffic": result.traffic,
        "rounds_traffic": [round_traffic(record) for record in result.records],
        "skipped": skipped(result.records),
    }


def model_hashes(result: RunResult) -> dict[str, str]:
    """SHA-256 of the stored models, under the names of ``results.json -> hashes``."""
    return {f"model_{name}": model["sha256"] for name, model in result.models.items()}
