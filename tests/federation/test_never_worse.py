"""The network that a run begins with is scored as a round is, and is the run's model where no round is better."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from samfed_monai.core.io import read_json, safe_load, sha256_file
from samfed_monai.federation.run_folder import START, Bests, RoundStore, against_start, best_round, expected_dice
from samfed_monai.federation.run_models import RunModels
from samfed_monai.federation.server import RoundController
from samfed_monai.federation.teacher import TeacherStage
from samfed_monai.networks.sam import adapter
from samfed_monai.networks.sam.adapter import Adapt
from samfed_monai.networks.sam.teacher import Teacher
from samfed_monai.reports.html import answer
from samfed_monai.reports.run_data import RunData
from samfed_monai.results import validate_results
from tests.federation.test_job import CLIENT, job
from tests.federation.test_site_teacher import Half
from tests.federation.test_start import equal, model_of


def record(round: int, dice: float | None, *, expected: float | None = None, sites: str = "ab") -> dict[str, Any]:
    """A round in which all sites have the same Dice."""
    scores = None if dice is None else {"dice": dice, "iou": 0.5, "hd95": 1.0, "n": 2, "empty": {}}
    promised = {} if expected is None else {"expected": {"dice": expected, "images": 2, "groups": []}}
    entries = {site: {"validation": scores, **promised} for site in sites}
    return {"round": round, "sites": entries, "average": {"validation": {"dice": dice}}}


@pytest.mark.parametrize(
    ("start", "rounds", "best", "below"),
    [
        (0.8, [0.7, 0.79], START, 2),
        (0.8, [0.8, 0.7], START, 1),  # the earliest among equals
        (0.8, [0.7, 0.81, 0.7, 0.7], 1, 2),
        (0.0, [0.5], 0, 0),
    ],
)
def test_the_start_is_the_best_where_no_round_is_better(start, rounds, best, below):
    records, begun = [record(number, dice) for number, dice in enumerate(rounds)], record(START, start)
    assert best_round(records, begun) == best
    assert against_start(records, begun) == {"by": "validation Dice", "start": start, "rounds": max(rounds)}
    bests = Bests()
    for count in range(1, len(records) + 1):
        bests.follow(records[:count], begun)
    assert (bests.now, bests.below) == (best, below)
    assert best_round(records) == rounds.index(max(rounds))


@pytest.mark.parametrize(("start", "best"), [(0.9, START), (0.55, 1)])
def test_without_masks_anywhere_it_is_compared_by_what_masks_promise(start, best):
    records = [record(number, None, expected=dice) for number, dice in enumerate((0.5, 0.6))]
    begun = record(START, None, expected=start)
    assert best_round(records, begun) == best
    assert against_start(records, begun) == {"by": "expected Dice", "start": start, "rounds": 0.6}
    assert against_start(records, None) is against_start([record(0, None)], begun) is None


def test_a_start_without_a_site_that_is_scored_later_is_not_compared():
    records = [record(0, 0.5, sites="ab")]
    assert best_round(records, record(START, 0.9, sites="a")) == 0


class LeftHalf(Half):
    """One whose masks are 1 on the left half and 0 on the right one, in 16 x 16 pixels."""

    def __init__(self) -> None:
        super().__init__("d" * 64)
        self.size, self.views = 64, 1


def without_sam(patch: Callable[[Any, str, Any], None]) -> Path:
    """Has runs take that teacher, whatever adapter they are given; returns one to give, which is also its SAM."""
    file = Path(__file__)
    header = SimpleNamespace(adapt=Adapt.LORA, base_sha256=sha256_file(file))
    patch(Teacher, "load", lambda **given: LeftHalf())
    patch(adapter, "read_header", lambda path: header)
    patch(TeacherStage, "checkpoint", lambda self: file)
    return file


@pytest.fixture(scope="module")
def misled(small_federation, tmp_path_factory):
    """A job whose sites learn from masks of the left half of every image, whatever it shows; and its results."""
    folder, logger = tmp_path_factory.mktemp("misled") / "run", logging.getLogger("samfed_monai")
    strongly = {"agreement#rule": "teacher", "terms#pseudo_label#weight": 4.0}
    train = {**CLIENT, "local_steps": 8, "learning_rate": 0.003, **strongly}
    with pytest.MonkeyPatch.context() as patch:
        file, level = without_sam(patch.setattr), logger.level
        options: dict[str, Any] = {"rounds": 3, "variant": "samfed", "warm_start_steps": 40, "adapter": str(file)}
        made = job(small_federation, folder, train=train, **options)
        logger.setLevel(logging.INFO)
        results = made.run()
        logger.setLevel(level)
    return made, results


def test_a_teacher_that_misleads_leaves_the_model_of_the_public_masks(misled):
    made, results = misled
    folder = made.places.output_dir
    start, rounds = (results["against_start"][name] for name in ("start", "rounds"))
    assert start > rounds
    assert results["models"]["best"]["round"] == START
    assert results["average"]["validation"]["dice"] == start, "scored once, before round 0"
    assert results["models"]["last"]["round"] == 2
    assert results["models"]["last"]["average"]["validation"]["dice"] < start
    assert results["average"]["test"]["n"] == 4
    assert validate_results(results) == []
    log = (folder / "run.log").read_text()
    assert [log.count(f"round {number} of 3: validation Dice") for number in range(4)] == [1, 1, 1, 1]
    assert log.count("3 rounds in a row score less than the network that the run began with") == 1
    assert f"(validation Dice {start:.3f}, in the best round {rounds:.3f})" in results["caveats"][0]
    said = answer(RunData.read(folder))[1]
    assert f"the network that the run began with, as no round is better (validation Dice {start:.3f}, in the " in said


def test_what_is_used_of_such_a_run_is_that_network(misled, tmp_path):
    made, results = misled
    folder = made.places.output_dir
    (warm,) = (folder / "cache" / "warm_start").glob("*.safetensors")
    models = RunModels(folder)
    assert models.round == START
    assert equal(models.tensors(), safe_load(warm))
    assert equal(safe_load(models.write(tmp_path / "model.safetensors")), safe_load(warm))
    assert (
        sha256_file(models.server)
        == results["hashes"]["model_best"]
        == read_json(models.server.parent / "round.json")["files"]["global.safetensors"]
    )
    assert not equal(model_of(folder, 2), safe_load(warm))


def test_what_masks_promise_says_so_too(misled):
    made, _ = misled
    store = RoundStore(made.places.output_dir / "rounds")
    promised = [expected_dice(store.record(number)) for number in (START, 0, 1, 2)]
    assert max(promised[1:]) < promised[0], "without labels the run would have fallen back as well"


def test_a_run_that_is_started_again_does_not_score_the_start_again(misled, monkeypatch):
    made, results = misled
    monkeypatch.setattr(RoundController, "_score_start", None)
    without_sam(monkeypatch.setattr)
    again = made.run()
    assert again["models"] == results["models"]
    assert again["against_start"] == results["against_start"]


def test_a_network_that_was_not_trained_before_is_not_scored(small_federation, tmp_path):
    results = job(small_federation, tmp_path / "run", rounds=1, warm_start_steps=0).run()
    assert "against_start" not in results
    assert not (tmp_path / "run" / "rounds" / "start").exists()
