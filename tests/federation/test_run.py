"""What the rounds came to, as results.json takes it."""

from __future__ import annotations

from types import SimpleNamespace

from samfed_monai.federation import RunResult
from samfed_monai.federation.run import model_hashes, outcome

MODEL = {"round": 1, "sha256": "5" * 64, "sites": {"a": {"test": None}}, "unseen": {"c": {"test": None}}}
ENTRY = {"status": "skipped", "reason": "late", "up_bytes": 1, "down_bytes": 2}
RESULT = RunResult(
    {"best": MODEL, "last": {**MODEL, "round": 2}},
    [{"round": 0, "sites": {"a": ENTRY, "b": {**ENTRY, "status": "ok", "reason": None}}}],
    {"up_bytes": 7, "down_bytes": 8},
    {},
)


def participants(*unseen: str) -> SimpleNamespace:
    strategy = SimpleNamespace(keeps_states=False)
    networks = {"a": "basic_unet"}
    return SimpleNamespace(unseen=unseen, networks=networks, exchange="weights", strategy=strategy, supervised=True)


def test_what_the_rounds_decide():
    found = outcome(RESULT, participants("c"))
    assert found == {
        "scores": {"best": {"a": {"test": None}}, "last": {"a": {"test": None}}},
        "model_rounds": {"best": 1, "last": 2},
        "unseen": {"best": {"c": {"test": None}}, "last": {"c": {"test": None}}},
        "networks": {"a": "basic_unet"},
        "exchange": "weights",
        "own_models": False,
        "own_labels": True,
        "traffic": {"up_bytes": 7, "down_bytes": 8},
        "rounds_traffic": [{"up_bytes": 2, "down_bytes": 4}],
        "skipped": [{"round": 0, "site": "a", "reason": "late"}],
        "against_start": None,
    }


def test_a_run_without_unseen_hospitals_says_nothing_of_them():
    assert outcome(RESULT, participants())["unseen"] is None


def test_hashes_of_the_stored_models():
    assert model_hashes(RESULT) == {"model_best": "5" * 64, "model_last": "5" * 64}
