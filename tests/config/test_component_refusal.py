"""What a component says in its own words becomes a refusal; what a workflow's own code gets wrong does not."""

from __future__ import annotations

import pytest
import torch
from monai.bundle import ConfigParser
from monai.utils import instantiate

from samfed_monai.config.exit_codes import component_refusal, told_by


def error_of(content, name):
    with pytest.raises(RuntimeError) as caught:
        ConfigParser(content).get_parsed_content(name)
    return caught.value


ADAM = {"_target_": "torch.optim.AdamW", "params": ["$torch.zeros(1)"], "lr": -1}
PARTS = {"torch": "$import torch", "group": {"optimizer": ADAM}, "loss": {"_target_": "torch.nn.L1Loss", "size": 1}}


def test_the_component_its_id_and_its_words_are_told():
    error = error_of(PARTS, "group")
    assert str(told_by(error)) == (
        "refused: 1 problem\n  - group#optimizer: expected values that torch.optim.AdamW takes, "
        "found 'Invalid learning rate: -1'; correct them in the bundle, or the override that sets them"
    )
    [problem] = component_refusal(error, file="train.json").problems
    assert problem.where == "train.json -> group#optimizer"


def test_an_argument_that_it_does_not_have_is_one():
    [problem] = told_by(error_of(PARTS, "loss")).problems
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
    assert told_by(run(lambda: int("x"))) is None
    assert told_by(run(lambda: len(1))) is None
    built = run(lambda: instantiate("torch.optim.SGD", "default", params=[torch.zeros(1)], lr=-1.0))
    [problem] = told_by(built).problems
    assert (problem.where, problem.found) == ("torch.optim.SGD", "'Invalid learning rate: -1.0'")


def test_a_type_error_in_code_of_this_package_is_a_mistake():
    pieces = {"loss": {"_target_": "samfed_monai.losses.StructureLoss", "kernel_size": "a"}}
    assert told_by(error_of(pieces, "loss")) is None
    pieces["loss"]["kernel_size"] = 4
    assert "expected an odd number" in str(told_by(error_of(pieces, "loss")))


def test_an_error_of_another_kind_is_a_mistake():
    wrapped = "Failed to instantiate component 'torch.optim.AdamW' with keywords: lr"
    error = RuntimeError(wrapped)
    assert told_by(error) is None
    error.__cause__ = KeyError("lr")
    assert told_by(error) is None
    error.__cause__ = ValueError("bad")
    assert "found 'bad'" in str(told_by(error))
