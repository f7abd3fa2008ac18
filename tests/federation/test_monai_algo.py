"""What MONAI asks of its own ``MonaiAlgo`` in its tests, asked of ours: made of files, or of workflows.

In this suite's own words and on its toy bundle; tracking with MLflow, and filters that MONAI's test data bring, are not
among it.
"""

from __future__ import annotations

from typing import Any

import pytest
from monai.bundle import ConfigWorkflow
from monai.fl.utils.constants import ExtraItems
from monai.fl.utils.exchange_object import ExchangeObject

from samfed_monai.federation.client import SamFedAlgo
from tests.federation.toys import BUNDLE, toy_weights

TRAIN = [str(BUNDLE / "configs" / "train.json")]
EVALUATE = [*TRAIN, str(BUNDLE / "configs" / "evaluate.json")]
SITE = {"site": "site-1"}
pytestmark = pytest.mark.filterwarnings("ignore:executing the bundle config:UserWarning")


def made(**options: Any) -> SamFedAlgo:
    algo = SamFedAlgo(BUNDLE, **options)
    algo.initialize({ExtraItems.CLIENT_NAME: "site-1"})
    return algo


def workflow(files: list[str]) -> ConfigWorkflow:
    return ConfigWorkflow(config_file=files, workflow_type="train", logging_file=False, **SITE)


@pytest.fixture(params=["files", "workflow"])
def trainer(request: pytest.FixtureRequest) -> SamFedAlgo:
    """A client that trains and has nothing to evaluate with."""
    own = {"config_train_filename": TRAIN, "train_kwargs": dict(SITE)}
    own = own if request.param == "files" else {"train_workflow": workflow(TRAIN)}
    return made(config_evaluate_filename=None, **own)


@pytest.mark.parametrize("of", ["files", "workflow"])
def test_a_client_that_only_evaluates_scores_what_it_is_sent(of: str) -> None:
    own = {"config_evaluate_filename": EVALUATE, "eval_kwargs": dict(SITE)}
    own = own if of == "files" else {"eval_workflow": workflow(EVALUATE)}
    metrics = made(config_train_filename=None, **own).evaluate(ExchangeObject(weights=toy_weights()), {}).metrics
    assert 0 <= metrics["dice"] <= 1


def test_a_client_that_only_trains_has_weights_from_the_first_on_and_trains_after_an_abort(trainer: SamFedAlgo) -> None:
    start = toy_weights()
    assert trainer.get_weights({}).weights.keys() == start.keys()
    trainer.abort()
    trainer.train(ExchangeObject(weights=start), {})
    answer = trainer.get_weights({}).weights
    assert answer.keys() == start.keys()
    assert any((answer[name] != start[name]).any() for name in start)
    trainer.finalize()
