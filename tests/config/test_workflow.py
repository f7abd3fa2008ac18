"""What a bundle's workflow calls: it checks first, and ``monai.bundle run`` ends with a message and an exit code.

From an error that MONAI wrapped to ours, or to what a component refused.
"""

from __future__ import annotations

import json
import logging
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from monai.bundle import ConfigParser
from monai.utils import instantiate

from samfed_monai.config import require_checked
from samfed_monai.config.targets import resolve_target
from samfed_monai.config.workflow import component_refusal, install_exit_hook, unwrap, unwrapped
from samfed_monai.core.errors import Problem, Refused, Terminated
from tests.config.conftest import Write
from tests.forking import start


def as_typed(words: list[str]) -> None:
    """``python -m monai.bundle`` with these words, in this process."""
    import monai.bundle

    command = str(Path(monai.bundle.__file__).with_name("__main__.py"))
    sys.argv = [command, *words]
    try:
        runpy.run_path(command, run_name="__main__")
    except Exception as error:  # what the interpreter does with an uncaught one, and multiprocessing does not
        sys.excepthook(type(error), error, error.__traceback__)
        sys.exit(1)


def monai_run(bundle: Path, *words: str, config: str | None = None) -> tuple[int | None, str]:
    """Exit code and standard error of MONAI's command, in a forked process: importing MONAI takes seconds."""
    errors = bundle / "errors"
    typed = ["run", "--config_file", config or str(bundle / "configs" / "train.json"), *words]
    process = start(as_typed, typed, errors=errors)
    process.join(120)
    return process.exitcode, errors.read_text()


def test_require_checked_raises_refused(bundle, rewrite: Write):
    require_checked(bundle, "train")
    rewrite("train.json", {"rate": "0.5"})
    with pytest.raises(Refused, match=r"train\.json -> rate: expected a number, found '0.5'"):
        require_checked(bundle, "train")


def test_workflow_ignores_command_line_of_other_workflow(bundle, monkeypatch):
    federate = str(bundle / "configs" / "federate.json")
    monkeypatch.setattr(sys, "argv", ["/x/monai/bundle/__main__.py", "run", "--config_file", federate, "--rounds", "3"])
    require_checked(bundle, "train")


@pytest.fixture
def under_monai(monkeypatch):
    """This process, as if MONAI's command had started it."""
    monkeypatch.setattr(logging.getLogger("samfed_monai.audit"), "propagate", True)
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    monkeypatch.setattr(sys, "argv", ["/x/monai/bundle/__main__.py", "run"])


KEPT = "completed work is kept\n  to continue: run the same command again\n"


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (Refused([Problem("x", found="1", expected="2")]), 2, "refused: 1 problem\n  - x: expected 2, found 1\n"),
        (KeyboardInterrupt(), 130, f"interrupted: {KEPT}"),
        (Terminated(), 3, f"stopped: received SIGTERM; {KEPT}"),
    ],
)
def test_errors_under_monai_have_exit_codes(under_monai, capsys, error, code, text):
    install_exit_hook()
    wrapped = raised_from(error) if isinstance(error, Exception) else error
    with pytest.raises(SystemExit) as left:
        sys.excepthook(type(wrapped), wrapped, None)
    assert left.value.code == code
    assert capsys.readouterr().err == text


def test_unknown_error_under_monai_is_unchanged(under_monai, capsys):
    install_exit_hook()
    sys.excepthook(ZeroDivisionError, ZeroDivisionError("by zero"), None)
    assert capsys.readouterr().err == "ZeroDivisionError: by zero\n"


def test_audit_log_is_not_propagated_under_monai(under_monai, monkeypatch):
    install_exit_hook()
    assert not logging.getLogger("samfed_monai.audit").propagate
    logging.getLogger("samfed_monai.audit").propagate = True
    monkeypatch.setattr(sys, "argv", ["pytest"])
    install_exit_hook()
    assert logging.getLogger("samfed_monai.audit").propagate, "another program's log is its own"


def test_fault_23_misspelt_monai_override_is_refused_with_code_2(bundle):
    code, output = monai_run(bundle, "--rtae", "0.2", "--amp", "True")
    assert code == 2, output
    assert "command line -> rtae: expected an id of this workflow" in output
    assert "did you mean 'rate'?" in output
    assert "Traceback" not in output


def test_config_files_of_monai_command_are_checked(bundle, rewrite: Write, under_monai):
    rewrite("variants/gentle.json", '{"rtae": 0.2}')
    files = [str(bundle / "configs" / name) for name in ("train.json", "variants/gentle.json")]
    sys.argv += ["--config_file", str(files)]
    with pytest.raises(Refused, match=r"gentle\.json -> rtae: .*did you mean 'rate'"):
        require_checked(bundle, "train")


@pytest.mark.parametrize("value", ["my runs #6", "'C#'", "['a', 'C#/b']", "#6"])
def test_text_with_hash_under_monai_is_refused(bundle, under_monai, value):
    sys.argv += ["--config_file", str(bundle / "configs" / "train.json"), "--spare", value]
    with pytest.raises(Refused) as refused:
        require_checked(bundle, "train")
    problem = refused.value.problems[-1]
    assert problem.where.startswith("command line -> spare")
    assert problem.expected == "text without '#', which MONAI's own command changes"


def test_component_refusal_under_monai_names_id(bundle, rewrite: Write):
    broken = {"_target_": "torch.nn.Dropout", "p": 2.0}
    rewrite("train.json", {"run": ["$@parts"], "parts": {"fine": {"_target_": "torch.nn.Dropout"}, "broken": broken}})
    code, output = monai_run(bundle)
    assert code == 2, output
    assert "- parts#fine or parts#broken: expected values that torch.nn.Dropout accepts, found 'dropout" in output
    assert "Traceback" not in output


def test_valid_bundle_runs_under_monai_with_variant(bundle):
    files = [str(bundle / "configs" / name) for name in ("train.json", "variants/gentle.json")]
    code, output = monai_run(bundle, "--rate", "0.3", config=json.dumps(files).replace('"', "'"))
    assert code == 0, output


def error_of(content, name):
    with pytest.raises(RuntimeError) as caught:
        ConfigParser(content).get_parsed_content(name)
    return caught.value


ADAM = {"_target_": "torch.optim.AdamW", "params": ["$torch.zeros(1)"], "lr": -1}
PARTS = {"torch": "$import torch", "group": {"optimizer": ADAM}, "loss": {"_target_": "torch.nn.L1Loss", "size": 1}}


def test_component_refusal_names_id_and_reason():
    error = error_of(PARTS, "group")
    assert str(unwrap(error, PARTS)) == (
        "refused: 1 problem\n  - group#optimizer: expected values that torch.optim.AdamW accepts, "
        "found 'Invalid learning rate: -1'; correct them in the bundle, or the override that sets them"
    )
    [problem] = component_refusal(error, PARTS, file="train.json").problems
    assert problem.where == "train.json -> group#optimizer"
    parser = ConfigParser(PARTS)
    with pytest.raises(Refused, match=r"- group#optimizer: expected values that"), unwrapped(parser):
        parser.get_parsed_content("group")


def test_component_refusal_falls_back_to_name_or_all_ids():
    error = error_of(PARTS, "group")
    for content, where in ((None, ADAM["_target_"]), ({"one": ADAM, "two": [ADAM]}, "one or two#0")):
        assert [problem.where for problem in unwrap(error, content).problems] == [where]
    [problem] = unwrap(error_of(PARTS, "loss")).problems
    assert "unexpected keyword argument 'size'" in problem.found


def run(work):
    with pytest.raises(RuntimeError) as caught:
        instantiate("samfed_monai.config.run_job", "default", job=SimpleNamespace(run=work))
    return caught.value


def test_runtime_errors_are_refusals_only_for_components():
    assert unwrap(run(lambda: int("x"))) is None
    built = run(lambda: instantiate("torch.optim.SGD", "default", params=[torch.zeros(1)], lr=-1.0))
    [problem] = unwrap(built).problems
    assert (problem.where, problem.found) == ("torch.optim.SGD", "'Invalid learning rate: -1.0'")


def test_type_error_in_package_code_is_no_refusal():
    pieces = {"loss": {"_target_": "samfed_monai.losses.StructureLoss", "kernel_size": "a"}}
    assert unwrap(error_of(pieces, "loss")) is None
    pieces["loss"]["kernel_size"] = 4
    assert "expected an odd number" in str(unwrap(error_of(pieces, "loss")))


@pytest.mark.parametrize(("cause", "known"), [(None, False), (KeyError("lr"), False), (ValueError("bad"), True)])
def test_only_known_error_causes_are_refusals(cause, known):
    error = RuntimeError("Failed to instantiate component 'torch.optim.AdamW' with keywords: lr")
    error.__cause__ = cause
    assert (unwrap(error) is not None) is known


REFUSED = Refused([Problem("x", found="1", expected="2")])


def raised_from(cause):
    error = RuntimeError("MONAI could not evaluate $@x")
    error.__cause__ = cause
    return error


def test_wrapped_refusal_is_found_and_context_is_ignored():
    assert unwrap(REFUSED) is REFUSED
    assert unwrap(raised_from(raised_from(REFUSED))) is REFUSED
    beside = TypeError("a fault of ours")
    beside.__context__ = REFUSED  # it was raised while the refusal was dealt with
    assert unwrap(beside) is None
    assert unwrap(ValueError("none of ours")) is None


def test_fault_50_out_of_memory_on_import_is_raised_unchanged(monkeypatch):
    def locate(*_: object) -> None:
        raise ImportError("libtorch_cpu.so: failed to map segment from shared object")

    monkeypatch.setattr("samfed_monai.config.targets._locate", locate)
    with pytest.raises(ImportError, match="failed to map segment"):
        resolve_target("torch.nn.Conv2d", "train.json -> network_def#_target_")
