"""What MONAI asks of its own ``MonaiAlgo`` in its tests, asked of ours beside it: made of files, or of workflows.

In this suite's own words and on its toy bundle; tracking with MLflow, and filters that MONAI's test data bring, are not
among it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from monai.bundle import ConfigWorkflow
from monai.fl.client.monai_algo import MonaiAlgo
from monai.fl.utils.constants import ExtraItems
from monai.fl.utils.exchange_object import ExchangeObject

from samfed_monai.federation.client import SamFedAlgo
from tests.federation.toys import BUNDLE, toy_weights

CONFIGS = BUNDLE / "configs"
TRAIN = [str(CONFIGS / "train.json")]
EVALUATE = [*TRAIN, str(CONFIGS / "evaluate.json")]
SITE = {"site": "site-1"}
Maker = Callable[..., MonaiAlgo]
pytestmark = pytest.mark.filterwarnings("ignore:executing the bundle config:UserWarning")


def workflow(files: list[str]) -> ConfigWorkflow:
    return ConfigWorkflow(config_file=files, workflow_type="train", logging_file=False, **SITE)


@pytest.fixture(params=[MonaiAlgo, SamFedAlgo], ids=["MONAI's", "ours"])
def make(request: pytest.FixtureRequest) -> Maker:
    def initialized(**options: Any) -> MonaiAlgo:
        algo: MonaiAlgo = request.param(bundle_root=str(BUNDLE), **options)
        algo.initialize(extra={ExtraItems.CLIENT_NAME: "site-1"})
        return algo

    return initialized


@pytest.fixture(params=["files", "workflow"])
def trainer(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Arguments of a client that trains and has nothing to evaluate with."""
    made: dict[str, Any] = {"config_evaluate_filename": None}
    if request.param == "files":
        return {**made, "config_train_filename": TRAIN, "train_kwargs": dict(SITE)}
    return {**made, "train_workflow": workflow(TRAIN)}


@pytest.fixture(params=["files", "workflow"])
def evaluator(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Arguments of a client that evaluates and has nothing to train with."""
    made: dict[str, Any] = {"config_train_filename": None}
    if request.param == "files":
        return {**made, "config_evaluate_filename": EVALUATE, "eval_kwargs": dict(SITE)}
    return {**made, "eval_workflow": workflow(EVALUATE)}


def sent() -> ExchangeObject:
    return ExchangeObject(weights=toy_weights())


def test_a_client_that_only_trains_does_so_after_an_abort(make: Maker, trainer: dict[str, Any]) -> None:
    algo = make(**trainer, send_weight_diff=False)
    algo.abort()
    algo.train(data=sent(), extra={})
    answer = algo.get_weights(extra={})
    start = toy_weights()
    assert answer.weights.keys() == start.keys()
    assert any((answer.weights[name] != start[name]).any() for name in start)
    algo.finalize()


def test_a_client_that_only_evaluates_scores_what_it_is_sent(make: Maker, evaluator: dict[str, Any]) -> None:
    metrics = make(**evaluator).evaluate(data=sent(), extra={}).metrics
    assert metrics is not None
    assert 0 <= metrics["dice"] <= 1


def test_weights_can_be_asked_for_before_any_training(make: Maker, trainer: dict[str, Any]) -> None:
    answer = make(**trainer, send_weight_diff=False).get_weights(extra={})
    assert isinstance(answer, ExchangeObject)
    assert answer.weights is not None
    assert answer.weights.keys() == toy_weights().keys()


def test_differences_need_a_global_model_first(make: Maker, trainer: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="global"):
        make(**trainer, send_weight_diff=True).get_weights(extra={})
