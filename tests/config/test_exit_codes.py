"""From an error to a message and an exit code: what a component says, and what ``monai.bundle run`` ends with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser
from monai.utils import instantiate

from samfed_monai.config import require_checked, run_or_exit
from samfed_monai.config.exit_codes import as_told, component_refusal, told_by
from samfed_monai.core.errors import Problem, Refused, Stopped
from tests.config.conftest import Write


def error_of(content, name):
    with pytest.raises(RuntimeError) as caught:
        ConfigParser(content).get_parsed_content(name)
    return caught.value


ADAM = {"_target_": "torch.optim.AdamW", "params": ["$torch.zeros(1)"], "lr": -1}
PARTS = {"torch": "$import torch", "group": {"optimizer": ADAM}, "loss": {"_target_": "torch.nn.L1Loss", "size": 1}}


def test_the_component_its_id_and_its_words_are_told():
    error, parser = error_of(PARTS, "group"), lambda: ConfigParser(PARTS)
    assert str(told_by(error, parser)) == (
        "refused: 1 problem\n  - group#optimizer: expected values that torch.optim.AdamW takes, "
        "found 'Invalid learning rate: -1'; correct them in the bundle, or the override that sets them"
    )
    [problem] = component_refusal(error, parser, file="train.json").problems
    assert problem.where == "train.json -> group#optimizer"
    with pytest.raises(Refused, match=r"- group#optimizer: expected values that"), as_told(parser):
        ConfigParser(PARTS).get_parsed_content("group")


def test_of_several_components_of_one_name_the_one_that_refused_is_told():
    parts = {"first": {**ADAM, "lr": 1}, "second": [{**ADAM, "_disabled_": True}, ADAM], "torch": "$import torch"}
    [problem] = told_by(error_of(parts, "second"), lambda: ConfigParser(parts)).problems
    assert problem.where == "second#1"


def test_a_component_that_no_configuration_has_is_told_by_its_name():
    error = error_of(PARTS, "group")
    for parser in (None, lambda: None, lambda: ConfigParser({"loss": PARTS["loss"]})):
        assert [problem.where for problem in told_by(error, parser).problems] == ["torch.optim.AdamW"]


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
    assert told_by(REFUSED) is REFUSED
    assert told_by(raised_from(raised_from(REFUSED))) is REFUSED


def test_a_fault_that_happened_while_a_refusal_was_dealt_with_is_not_told_as_one():
    assert told_by(raised_beside(REFUSED)) is None
    assert told_by(ValueError("none of ours")) is None


REPOSITORY = Path(__file__).resolve().parents[2]


def monai_run(bundle: Path, *words: str, config: str | None = None) -> subprocess.CompletedProcess[str]:
    config = config or str(bundle / "configs" / "train.json")
    command = [sys.executable, "-W", "ignore", "-m", "monai.bundle", "run", "--config_file", config, *words]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(REPOSITORY)})


def test_inside_python_the_refusal_is_an_exception(bundle, rewrite: Write):
    require_checked(bundle, "train")
    rewrite("train.json", {"rate": "0.5"})
    with pytest.raises(Refused, match=r"train\.json -> rate: expected a number, found '0.5'"):
        require_checked(bundle, "train")


def test_inside_python_run_or_exit_passes_errors_through():
    assert run_or_exit(lambda: 3) == 3

    def refuse() -> None:
        raise Refused([Problem("x", found="1", expected="2")])

    with pytest.raises(Refused):
        run_or_exit(refuse)


def test_a_workflow_inside_another_ones_process_does_not_take_its_overrides(bundle, monkeypatch):
    federate = str(bundle / "configs" / "federate.json")
    monkeypatch.setattr(sys, "argv", ["/x/monai/bundle/__main__.py", "run", "--config_file", federate, "--rounds", "3"])
    require_checked(bundle, "train")


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (Refused([Problem("x", found="1", expected="2")]), 2, "refused: 1 problem\n  - x: expected 2, found 1\n"),
        (
            Stopped("the disk is full", resume="type it again"),
            3,
            "stopped: the disk is full\n  to go on: type it again\n",
        ),
        (KeyboardInterrupt(), 130, "interrupted: what was complete is kept\n  to go on: type the same command again\n"),
    ],
)
def test_under_monai_each_error_has_its_exit_code(monkeypatch, capsys, error, code, text):
    monkeypatch.setattr(sys, "argv", ["/x/monai/bundle/__main__.py", "run"])

    def job() -> None:
        try:
            raise error
        except Exception as cause:
            raise RuntimeError("Failed to evaluate") from cause

    with pytest.raises(SystemExit) as left:
        run_or_exit(job)
    assert left.value.code == code
    assert capsys.readouterr().err == text


def test_under_monai_an_unknown_error_stays_what_it_is(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/x/monai/bundle/__main__.py", "run"])
    with pytest.raises(ZeroDivisionError):
        run_or_exit(lambda: 1 / 0)


@pytest.mark.slow
def test_fault_23_misspelt_override_given_to_monai_is_refused_with_code_2(bundle):
    done = monai_run(bundle, "--rtae", "0.2", "--amp", "True")
    assert done.returncode == 2
    assert "command line -> rtae: expected an id that this workflow has" in done.stderr
    assert "did you mean 'rate'?" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_under_monai_a_component_that_refuses_is_told_with_its_id(bundle, rewrite: Write):
    broken = {"_target_": "torch.nn.Dropout", "p": 2.0}
    rewrite("train.json", {"run": ["$@parts"], "parts": {"fine": {"_target_": "torch.nn.Dropout"}, "broken": broken}})
    done = monai_run(bundle)
    assert done.returncode == 2, done.stderr
    assert "- parts#broken: expected values that torch.nn.Dropout takes, found 'dropout probability" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_under_monai_a_good_bundle_runs_with_a_variant(bundle):
    files = [str(bundle / "configs" / name) for name in ("train.json", "variants/gentle.json")]
    done = monai_run(bundle, "--rate", "0.3", config=json.dumps(files).replace('"', "'"))
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_under_monai_what_a_component_refuses_ends_with_code_2(bundle, rewrite: Write):
    rewrite("train.json", {"run": ["$@train#trainer", "$@broken"], "broken": {"_target_": "tests.config.toys.refuse"}})
    done = monai_run(bundle)
    assert done.returncode == 2, done.stderr
    assert done.stderr.rstrip().endswith("  - toy: expected nothing, found a toy")
    assert "Traceback" not in done.stderr
