"""Which device computes."""

from __future__ import annotations

import os

import pytest
import torch

from samfed_monai.cli.main import main
from samfed_monai.core.errors import Refused
from samfed_monai.core.own_process import DEVICE, best_device, device_name, usable_cores


@pytest.mark.parametrize(("asked", "gpu", "device"), [("", True, "cuda"), ("", False, "cpu"), ("cpu", True, "cpu")])
def test_it_is_the_one_asked_for_else_the_first_gpu_else_the_cpu(
    asked: str, gpu: bool, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DEVICE, asked)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert best_device() == torch.device(device)


def test_cores_are_those_that_a_scheduler_left_to_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 4, 5, 6}, raising=False)
    assert usable_cores() == 4
    monkeypatch.delattr(os, "sched_getaffinity")
    assert usable_cores() == 64


def test_results_name_a_gpu_by_its_model_and_another_device_by_its_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"Model of {device}")
    assert device_name("cuda:1") == "Model of cuda:1"
    monkeypatch.setenv(DEVICE, "cpu")
    assert device_name() == device_name("cpu") == "cpu"


@pytest.mark.parametrize("asked", ["gpu", "cuda:99", "meta", "cpu:x"])
def test_what_is_not_here_is_refused_with_what_is(asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DEVICE, asked)
    with pytest.raises(Refused, match=rf"SAMFED_DEVICE\): expected a device of this machine: cpu.*'{asked}'"):
        best_device()


def test_a_command_refuses_it_before_anything_else(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["infer", "nowhere", "--output-dir", "o", "--device", "gpu"]) == 2
    assert "--device (SAMFED_DEVICE): expected a device of this machine" in capsys.readouterr().err


@pytest.mark.parametrize("before", [None, "cuda:7"])
def test_what_a_command_was_told_does_not_outlive_it(before: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DEVICE, raising=False)
    if before:
        monkeypatch.setenv(DEVICE, before)
    seen = []
    monkeypatch.setattr("samfed_monai.cli.infer.run", lambda _: seen.append(os.environ[DEVICE]))
    assert main(["infer", "samfed_skin", "photos", "--output-dir", "o", "--device", "cpu"]) == 0
    assert seen == ["cpu"]
    assert os.environ.get(DEVICE) == before
