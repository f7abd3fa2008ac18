"""From an error that MONAI wrapped to ours, or to what a component refused."""

from __future__ import annotations

import pytest
import torch
from monai.bundle import ConfigParser
from monai.utils import instantiate

from samfed_monai.config.targets import resolve_target
from samfed_monai.config.workflow import component_refusal, unwrap, unwrapped
from samfed_monai.core.errors import Problem, Refused


def error_of(content, name):
    with pytest.raises(RuntimeError) as caught:
        ConfigParser(content).get_parsed_content(name)
    return caught.value


ADAM = {"_target_": "torch.optim.AdamW", "params": ["$torch.zeros(1)"], "lr": -1}
PARTS = {"torch": "$import torch", "group": {"optimizer": ADAM}, "loss": {"_target_": "torch.nn.L1Loss", "size": 1}}


def test_the_component_its_id_and_its_words_are_told():
    error = error_of(PARTS, "group")
    assert str(unwrap(error, PARTS)) == (
        "refused: 1 problem\n  - group#optimizer: expected values that torch.optim.AdamW takes, "
        "found 'Invalid learning rate: -1'; correct them in the bundle, or the override that sets them"
    )
    [problem] = component_refusal(error, PARTS, file="train.json").problems
    assert problem.where == "train.json -> group#optimizer"
    parser = ConfigParser(PARTS)
    with pytest.raises(Refused, match=r"- group#optimizer: expected values that"), unwrapped(parser):
        parser.get_parsed_content("group")


def test_a_component_that_no_configuration_has_is_known_by_its_name_and_one_of_several_by_all_their_ids():
    error = error_of(PARTS, "group")
    for content in (None, {"loss": PARTS["loss"]}):
        assert [problem.where for problem in unwrap(error, content).problems] == ["torch.optim.AdamW"]
    [problem] = unwrap(error, {"one": ADAM, "two": [ADAM]}).problems
    assert problem.where == "one or two#0"


def test_an_argument_that_it_does_not_have_is_one():
    [problem] = unwrap(error_of(PARTS, "loss")).problems
    assert "unexpected keyword argument 'size'" in problem.found


class Job:
    """Its run goes wrong, or builds something that refuses."""

    def __init__(self, work):
        self.run = work


def run(work):
    with pytest.raises(RuntimeError) as caught:
        instantiate("samfed_monai.config.run_job", "default", job=Job(work))
    return caught.value


def test_what_goes_wrong_while_a_workflow_runs_is_a_mistake_unless_a_component_refused():
    assert unwrap(run(lambda: int("x"))) is None
    assert unwrap(run(lambda: len(1))) is None
    built = run(lambda: instantiate("torch.optim.SGD", "default", params=[torch.zeros(1)], lr=-1.0))
    [problem] = unwrap(built).problems
    assert (problem.where, problem.found) == ("torch.optim.SGD", "'Invalid learning rate: -1.0'")


def test_a_type_error_in_code_of_this_package_is_a_mistake():
    pieces = {"loss": {"_target_": "samfed_monai.losses.StructureLoss", "kernel_size": "a"}}
    assert unwrap(error_of(pieces, "loss")) is None
    pieces["loss"]["kernel_size"] = 4
    assert "expected an odd number" in str(unwrap(error_of(pieces, "loss")))


def test_an_error_of_another_kind_is_a_mistake():
    wrapped = "Failed to instantiate component 'torch.optim.AdamW' with keywords: lr"
    error = RuntimeError(wrapped)
    assert unwrap(error) is None
    error.__cause__ = KeyError("lr")
    assert unwrap(error) is None
    error.__cause__ = ValueError("bad")
    assert "found 'bad'" in str(unwrap(error))


REFUSED = Refused([Problem("x", found="1", expected="2")])


def raised_from(cause):
    try:
        raise RuntimeError("MONAI could not evaluate $@x") from cause
    except RuntimeError as error:
        return error


def raised_beside(context):
    try:
        try:
            raise context
        except Refused:
            raise TypeError("a fault of ours")  # noqa: B904 - as it happens by mistake
    except TypeError as error:
        return error


def test_a_refusal_is_told_however_deep_it_was_wrapped():
    assert unwrap(REFUSED) is REFUSED
    assert unwrap(raised_from(raised_from(REFUSED))) is REFUSED


def test_a_fault_that_happened_while_a_refusal_was_dealt_with_is_not_told_as_one():
    assert unwrap(raised_beside(REFUSED)) is None
    assert unwrap(ValueError("none of ours")) is None


def test_fault_50_memory_that_runs_out_while_a_target_is_imported_is_no_fault_of_the_bundle(monkeypatch):
    def locate(*_: object) -> None:
        raise ImportError("libtorch_cpu.so: failed to map segment from shared object")

    monkeypatch.setattr("samfed_monai.config.targets._locate", locate)
    with pytest.raises(ImportError, match="failed to map segment"):
        resolve_target("torch.nn.Conv2d", "train.json -> network_def#_target_")
