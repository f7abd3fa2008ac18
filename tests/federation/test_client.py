"""The client on a toy bundle: MONAI FL's own calls, where an engine starts a round, and the traps that it closes."""

from __future__ import annotations

import random
import time
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow
from monai.fl.client import ClientAlgo
from monai.fl.utils.constants import ExtraItems, FlStatistics, ModelType, WeightType
from monai.fl.utils.exchange_object import ExchangeObject

from samfed_monai.core.errors import Refused
from samfed_monai.federation import SamFedAlgo, from_exchange_object, to_exchange_object
from samfed_monai.federation.client import place_at_round
from samfed_monai.federation.exchange_object import Call, as_network_tensors
from samfed_monai.federation.site_network import SiteNetwork
from samfed_monai.networks.key_patterns import KeySplit
from samfed_monai.protocol import Kind, Message, MessageRefused
from tests.federation.toys import BUNDLE, copied, same, toy_algo, toy_weights

CALL = {"round": 1, "rounds": 4, "seed": 0}


def given(tensors=None) -> ExchangeObject:
    return to_exchange_object(
        Message(Kind.WEIGHTS, "site-1", 1, 4, tensors=toy_weights() if tensors is None else tensors)
    )


def as_flare_sends_them(tensors) -> ExchangeObject:
    """NumPy arrays without a header; averaged counters are floats."""
    return ExchangeObject(weights={name: tensor.numpy().astype(np.float64) for name, tensor in tensors.items()})


def trained(algo, call=CALL) -> dict[str, torch.Tensor]:
    algo.train(given(), call)
    return algo.get_weights(call).weights


def state_of(algo) -> dict[str, torch.Tensor]:
    return copied(algo.trainer.network.state_dict())


def moments(algo) -> torch.Tensor:
    return next(iter(algo.trainer.optimizer.state.values()))["exp_avg"]


def test_client_supports_monai_fl_call_order():
    algo = toy_algo()
    assert isinstance(algo, ClientAlgo)
    weights = ExchangeObject(weights=toy_weights())  # no header: any MONAI FL system may call
    algo.train(weights, extra={})
    answer = algo.get_weights(extra={})
    assert answer.weight_type == WeightType.WEIGHTS
    assert answer.statistics[FlStatistics.NUM_EXECUTED_ITERATIONS] == 2
    assert answer.weights.keys() == toy_weights().keys()
    assert answer.is_valid_weights()
    assert set(algo.evaluate(weights, extra={}).metrics) >= {"dice", "iou", "hd95"}
    algo.finalize()


@pytest.mark.parametrize("made_of", ["files", "workflow"])
@pytest.mark.filterwarnings("ignore:executing the bundle config:UserWarning")
def test_client_can_only_train_or_only_evaluate(made_of):
    def made(purpose: str, *names: str) -> SamFedAlgo:
        files, site = [str(BUNDLE / "configs" / f"{name}.json") for name in names], {"site": "site-1"}
        own: dict[str, Any] = {"config_train_filename": None, "config_evaluate_filename": None}
        if made_of == "workflow":
            own[f"{purpose}_workflow"] = ConfigWorkflow(files, workflow_type="train", logging_file=False, **site)
        else:
            own |= {f"config_{names[-1]}_filename": files, f"{purpose}_kwargs": site}
        algo = SamFedAlgo(BUNDLE, **own)
        algo.initialize({ExtraItems.CLIENT_NAME: "site-1"})
        return algo

    trainer, start = made("train", "train"), toy_weights()
    assert trainer.get_weights({}).weights.keys() == start.keys(), "from the first on"
    trainer.abort()
    trainer.train(ExchangeObject(weights=start), {})
    answer = trainer.get_weights({}).weights
    assert answer.keys() == start.keys()
    assert not same(answer, start)
    evaluator = made("eval", "train", "evaluate")
    assert evaluator.count() == 0
    assert 0 <= evaluator.evaluate(ExchangeObject(weights=start), {}).metrics["dice"] <= 1


def test_training_sets_round_and_returns_count_and_metrics():
    algo, began = toy_algo(), time.perf_counter()
    trained(algo)
    assert (algo.trainer.state.round, algo.trainer.state.rounds, algo.trainer.state.epoch) == (1, 4, 2)
    answer = from_exchange_object(algo.get_weights(CALL), request=Message(Kind.WEIGHTS, "site-1", 1, 4))
    assert answer.n == 6, "the unlabelled images, not the public ones"
    assert answer.metrics.keys() == {"seconds", "iterations", "term_supervised", "term_agreement"}
    assert answer.metrics["iterations"] == 2
    assert 0 < answer.metrics["seconds"] < time.perf_counter() - began
    answer.check(up=True, like=toy_weights(), site="site-1", round=1)


def test_returned_weights_are_copies():
    algo = toy_algo()
    first = trained(algo)
    before = copied(first)
    algo.train(given(), {**CALL, "round": 2})
    assert same(first, before)


def test_round_is_reproducible_without_optimizer_state():
    fresh = trained(toy_algo())
    algo = toy_algo(keep_optimizer=False)
    trained(algo, {**CALL, "round": 3})
    torch.manual_seed(99)
    assert same(trained(algo), fresh)
    assert algo.state_dict() == {}
    assert not same(trained(algo, {**CALL, "seed": 1}), fresh)


def test_global_random_state_is_unchanged():
    torch.manual_seed(1), np.random.seed(1), random.seed(1)  # noqa: NPY002
    expected = torch.rand(1).item(), np.random.rand(), random.random()  # noqa: NPY002
    torch.manual_seed(1), np.random.seed(1), random.seed(1)  # noqa: NPY002
    algo = toy_algo()
    trained(algo)
    algo.evaluate(given(), CALL)
    assert (torch.rand(1).item(), np.random.rand(), random.random()) == expected  # noqa: NPY002


def with_(name: str, change: Callable[[Any], Any]) -> Callable[[dict], dict]:
    """Of weights: the same with one of them changed."""
    return lambda tensors: {**tensors, name: change(tensors[name])}


#: Weights that do not fit, and what they are refused with; MONAI itself reshapes some, and keeps its own for others.
UNFIT = {
    "32 nan": (with_("0.bias", lambda own: own * float("nan")), r"message -> 0\.bias: expected finite values"),
    "33 transposed": (
        with_("0.weight", lambda own: own.swapaxes(0, 1)),
        r"message -> 0\.weight: expected shape \(4, 3, 3, 3\)",
    ),
    "34 missing": (
        lambda tensors: {name: own for name, own in tensors.items() if name != "3.bias"},
        r"message -> 3\.bias: .* found no such tensor",
    ),
    **{
        f"32 counter {value}": (
            with_("1.num_batches_tracked", lambda own, value=value: torch.tensor(value)),
            r"message -> 1\.num_batches_tracked: expected",
        )
        for value in (float("nan"), float("inf"))
    },
    "40 another network": (lambda tensors: {"other": tensors["3.bias"]}, "found 1 with unknown names"),
}


@pytest.mark.parametrize("arrays", [False, True])
@pytest.mark.parametrize("unfit", UNFIT)
def test_faults_32_to_40_unfit_weights_are_refused_before_loading(unfit, arrays):
    change, refusal = UNFIT[unfit]
    tensors = change(toy_weights())
    data = as_flare_sends_them(tensors) if arrays else given({name: own.contiguous() for name, own in tensors.items()})
    algo = toy_algo()
    before = state_of(algo)
    for task in (algo.train, algo.evaluate):
        with pytest.raises(MessageRefused, match=refusal):
            task(data, {} if arrays else CALL)
        assert same(before, state_of(algo))


def test_fault_35_other_dtype_is_refused():
    tensors = {name: each.double() if each.is_floating_point() else each for name, each in toy_weights().items()}
    with pytest.raises(MessageRefused, match=r"expected torch\.float32, found torch\.float64"):
        toy_algo().train(given(tensors), CALL)


def test_evaluation_by_split_returns_means_and_writes_tables(tmp_path):
    algo = toy_algo(output_dir=tmp_path)
    for split, images in (("test", 2), ("validation", 3), ("test", 2)):
        answer = algo.evaluate(given(), {**CALL, "split": split, "model": "best"})
        assert answer["samfed"]["n"] == images
        means = {"dice", "iou", "hd95", "sensitivity", "precision", "area", "expected_dice", "expected_images"}
        assert answer.metrics.keys() == means | {"empty_both", "empty_prediction", "empty_label"}
        assert [row["id"] for row in algo.scores[split]] == [f"site-1-{split}-{index}" for index in range(images)]
        assert (tmp_path / "best/site-1" / split / "scores.csv").is_file()
    algo.evaluate(given(), {**CALL, "split": "validation", "model": "current"})
    assert not (tmp_path / "current").exists()
    with pytest.raises(Refused, match="split: expected one of"):
        algo.evaluate(given(), {**CALL, "split": "training"})


def test_evaluator_shares_network_and_restores_trained_weights():
    algo = toy_algo()
    assert algo.evaluator.network is algo.trainer.network
    trained(algo)
    algo.trainer.network[1].eval()
    before = state_of(algo)
    modes = [module.training for module in algo.trainer.network.modules()]
    assert len(set(modes)) == 2
    score = algo.evaluate(given(toy_weights(5)), CALL).metrics
    assert same(state_of(algo), before)
    assert [module.training for module in algo.trainer.network.modules()] == modes
    alone = toy_algo(config_train_filename=None)
    assert alone.evaluate(given(toy_weights(5)), CALL).metrics == score, "of the weights sent, not of those trained"


def test_failed_evaluation_restores_trained_weights(monkeypatch):
    algo = toy_algo()
    trained(algo)
    before, seen = state_of(algo), []

    def fail(*_: object) -> None:
        seen.append(state_of(algo))
        raise OSError

    monkeypatch.setattr(algo.evaluator, "run", fail)
    with pytest.raises(OSError):
        algo.evaluate(given(toy_weights(5)), CALL)
    assert torch.equal(seen[0]["0.bias"], toy_weights(5)["0.bias"]), "it had been lent"
    assert same(state_of(algo), before)


def test_optimizer_state_resumes_training_in_fresh_client():
    algo = toy_algo()
    trained(algo, {**CALL, "round": 0})
    state = copied(algo.state_dict())
    expected = trained(algo)
    other = toy_algo()
    other.load_state_dict(state)
    assert same(trained(other), expected)
    assert not same(trained(toy_algo()), expected), "the moments do matter"
    with pytest.raises(Refused, match="optimizer state: expected a state of AdamW"):
        other.load_state_dict({"0.exp_avg": torch.ones(1)})


def test_non_finite_moments_are_reset_after_round(caplog):
    algo = toy_algo(bundle={"fail_in_round": 1})
    trained(algo, {**CALL, "round": 0})
    moments(algo).fill_(float("nan"))
    with pytest.raises(FileNotFoundError):
        trained(algo)
    assert all(tensor.isfinite().all() for tensor in algo.state_dict().values() if tensor.is_floating_point())
    caplog.clear()
    trained(algo, {**CALL, "round": 2})
    moments(algo).fill_(float("nan"))
    trained(algo, {**CALL, "round": 3})
    assert "the optimizer's moments were not finite and were reset" in caplog.text
    assert all(tensor.isfinite().all() for tensor in trained(algo, {**CALL, "round": 4}).values())


def test_training_continues_after_failed_round():
    algo = toy_algo(bundle={"fail_in_round": 1})
    with pytest.raises(FileNotFoundError):
        trained(algo)
    algo.train(given(), {**CALL, "round": 2})
    assert algo.get_weights(CALL).metrics["iterations"] == 2
    assert not same(algo.get_weights(CALL).weights, toy_weights())


def test_calls_are_checked_against_client_lifecycle():
    with pytest.raises(RuntimeError, match=r"train\(\) was called before initialize"):
        toy_algo(initialize=False).train(given(), CALL)
    algo = toy_algo()
    algo.abort()
    with pytest.raises(RuntimeError, match=r"was aborted; call initialize\(\) or train\(\) before using it again"):
        algo.evaluate(given(), CALL)
    algo.train(given(), CALL)
    assert same(algo.get_weights(CALL).weights, trained(toy_algo()))
    assert algo.evaluate(given(), CALL).metrics["dice"] >= 0
    algo.finalize()
    for work in (algo.train, algo.evaluate):
        with pytest.raises(RuntimeError, match=r"was finalized; call initialize\(\) before using it again"):
            work(given(), CALL)


def test_fault_80_arrays_without_header_train_to_same_weights():
    plain, arrays = toy_algo(), toy_algo()
    plain.train(ExchangeObject(weights=toy_weights()), CALL)
    arrays.train(as_flare_sends_them(toy_weights()), CALL)
    answer = arrays.get_weights()
    assert same(answer.weights, plain.get_weights().weights)
    assert answer.weights["1.num_batches_tracked"].dtype == torch.int64
    scores = [algo.evaluate(as_flare_sends_them(toy_weights())).metrics["dice"] for algo in (plain, arrays)]
    assert scores[0] == scores[1]


def test_fault_80_averaged_counter_is_rounded_to_integer():
    like = {"steps": torch.tensor(0), "w": torch.zeros(2)}
    tensors = as_network_tensors({"steps": np.float32(3.75), "w": np.array([1.5, 2.5])}, like)
    assert tensors["steps"].item() == 4
    assert tensors["w"].tolist() == [1.5, 2.5]
    assert [tensor.dtype for tensor in tensors.values()] == [torch.int64, torch.float32]


def test_non_numeric_weights_are_refused():
    with pytest.raises(MessageRefused, match=r"message -> w: expected a tensor or an array of numbers, found str"):
        toy_algo().train(ExchangeObject(weights={"w": "1, 2"}), extra={})


def test_weight_differences_are_relative_to_received_weights():
    full, algo = toy_algo(), toy_algo(send_weight_diff=True)
    with pytest.raises(ValueError, match="global_weights"):
        algo.get_weights()
    for client in (full, algo):
        client.train(as_flare_sends_them(toy_weights()), CALL)
    answer, start = algo.get_weights(), toy_weights()
    assert answer.weight_type == WeightType.WEIGHT_DIFF
    expected = {name: tensor - start[name] for name, tensor in full.get_weights().weights.items()}
    assert same(answer.weights, expected)
    assert expected["1.num_batches_tracked"] == 2


def test_answer_includes_frozen_weights_for_whole_network():
    algo = toy_algo()
    shared = tuple(toy_weights().keys() - {"3.bias", "0.weight"})
    algo.own = SiteNetwork(algo.trainer.network, KeySplit(shared, personal=("3.bias",), frozen=("0.weight",)))
    theirs = toy_weights(seed=1)
    algo.train(as_flare_sends_them(theirs), extra={})
    assert algo.get_weights().weights.keys() == theirs.keys() - {"3.bias"}, "what is personal stays"
    algo.train(ExchangeObject(weights={name: theirs[name] for name in shared}), extra={})
    assert algo.get_weights().weights.keys() == set(shared)


def test_security_warning_is_silent_only_for_vetted_bundle():
    with pytest.warns(UserWarning, match="executing the bundle config under"):
        toy_algo(vetted=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        toy_algo(vetted=True)
    assert not SamFedAlgo("bundle").vetted


def test_missing_best_model_checkpoint_raises():
    with pytest.raises(ValueError, match="No best model checkpoint"):
        toy_algo().get_weights({ExtraItems.MODEL_TYPE: ModelType.BEST_MODEL})


@pytest.mark.parametrize(
    ("length", "call", "epochs", "placed"),
    [
        (5, {"round": 2, "rounds": 4}, 3, {"round": 2, "rounds": 4, "epoch": 6, "iteration": 30}),
        (None, {"round": 2}, 1, {"round": 2, "rounds": 3, "epoch": 2, "iteration": 0}),
        (5, {}, 3, {"epoch": 9, "iteration": 9}),
    ],
    ids=["a round", "of unknown length", "no round"],
)
def test_trainer_is_placed_at_round(length, call, epochs, placed):
    trainer = SimpleNamespace(state=SimpleNamespace(epoch=9, iteration=9, epoch_length=length))
    place_at_round(trainer, Call.of("a", call), local_epochs=epochs)
    assert vars(trainer.state) == {**placed, "epoch_length": length}
