"""A process of our own: how long its waiting threads spin, what memory it keeps, which device computes."""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import subprocess
import sys
from typing import Any

import pytest
import torch

from samfed_monai.cli.main import main
from samfed_monai.core.errors import Refused
from samfed_monai.core.process_setup import (
    DEVICE,
    best_device,
    device_name,
    keep_freed_memory,
    limit_of_spins,
    usable_cores,
)

CHOICES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
ALLOCATOR = ("GLIBC_TUNABLES", "LD_PRELOAD", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")


@pytest.mark.parametrize("chosen", [{}, *({name: "7"} for name in CHOICES)])
def test_brief_spins_are_set_unless_chosen_by_user(monkeypatch, chosen):
    environment = {name: value for name, value in os.environ.items() if name not in CHOICES} | chosen
    monkeypatch.setattr(os, "environ", environment.copy())
    assert limit_of_spins() == ({} if chosen else {"GOMP_SPINCOUNT": "1000"})


@pytest.mark.parametrize(
    ("started", "arguments"),
    [
        ("from samfed_monai.cli.main import main; main()", ["--help"]),
        ("from samfed_monai.flare.worker import serve; serve(None)", ["0", "1"]),
    ],
)
def test_brief_spins_are_set_before_torch_import(started, arguments):
    code = (
        "import atexit, os, sys\n"
        "def report():\n"
        "    sys.stderr.write(f\"\\n{os.environ.get('GOMP_SPINCOUNT')} {'torch' in sys.modules}\")\n"
        f"atexit.register(report)\n{started}\n"
    )
    environment = {name: value for name, value in os.environ.items() if name not in CHOICES}
    options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "check": False}
    done = subprocess.run([sys.executable, "-c", code, *arguments], env=environment, **options)
    assert done.stderr.splitlines()[-1] == "1000 False"


def test_process_ends_with_its_parent():
    code = "from samfed_monai.core.process_setup import end_with_parent as end; import time; end(); time.sleep({})"
    options: dict[str, Any] = {"stdin": subprocess.PIPE, "env": {**os.environ, "SAMFED_ENDS_WITH_PARENT": "1"}}
    for seconds, returned in ((0.3, 0), (60, -signal.SIGTERM)):
        with subprocess.Popen([sys.executable, "-c", code.format(seconds)], **options) as child:
            while seconds < 1 and child.poll() is None:  # the end of the block closes the pipe
                pass
        assert child.returncode == returned


# minor page faults of asking for 64 MiB, writing to all of it and freeing it, for the third time
_FAULTS = """
import ctypes, resource
{setup}
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
def once(size=64 << 20):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(size)
    ctypes.memset(block, 1, size)
    libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print([once() for _ in range(3)][-1])
"""


def faults(setup: str, **environment: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", _FAULTS.format(setup=setup)],
        env={"PYTHONPATH": ":".join(filter(None, sys.path)), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these thresholds")
def test_freed_memory_is_reused_without_page_faults():
    kept = "from samfed_monai.core.process_setup import keep_freed_memory, peak_memory; assert keep_freed_memory()"
    assert faults("") > 10
    assert faults(kept) == 0


@pytest.mark.parametrize("name", ALLOCATOR)
def test_user_allocator_settings_are_kept(monkeypatch, name):
    monkeypatch.setenv(name, "")
    monkeypatch.setattr(ctypes, "CDLL", lambda _: pytest.fail("the allocator was touched"))
    assert not keep_freed_memory()


@pytest.mark.parametrize(
    "error", [OSError("no such library"), TypeError("a name is needed"), AttributeError("mallopt")]
)
def test_other_c_libraries_are_ignored(monkeypatch, error):
    def missing(name):
        raise error

    for variable in ALLOCATOR:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert not keep_freed_memory()


@pytest.mark.skipif(platform.system() != "Linux", reason="read from /proc")
def test_peak_memory_includes_freed_memory():
    script = (
        "from samfed_monai.core.process_setup import peak_memory\n"
        "before = peak_memory()\nblock = bytearray(64 << 20)\ndel block\nprint(before, peak_memory())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())  # of a process of its own: this one may have had more long ago
    assert before > 1 << 20
    assert 60 << 20 < after - before < 90 << 20


@pytest.mark.parametrize(("requested", "gpu", "device"), [("", True, "cuda"), ("", False, "cpu"), ("cpu", True, "cpu")])
def test_best_device_is_requested_or_gpu_or_cpu(requested: str, gpu: bool, device: str, monkeypatch) -> None:
    monkeypatch.setenv(DEVICE, requested)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert best_device() == torch.device(device)


def test_usable_cores_respect_cpu_affinity(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 4, 5, 6}, raising=False)
    assert usable_cores() == 4
    monkeypatch.delattr(os, "sched_getaffinity")
    assert usable_cores() == 64


def test_device_name_is_gpu_model_or_device_type(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"Model of {device}")
    assert device_name("cuda:1") == "Model of cuda:1"
    monkeypatch.setenv(DEVICE, "cpu")
    assert device_name() == device_name("cpu") == "cpu"


@pytest.mark.parametrize("requested", ["gpu", "cuda:99", "meta", "cpu:x"])
def test_unavailable_device_is_refused_with_alternatives(requested: str, monkeypatch):
    monkeypatch.setenv(DEVICE, requested)
    with pytest.raises(Refused, match=rf"SAMFED_DEVICE\): expected a device of this machine: cpu.*'{requested}'"):
        best_device()


def test_command_refuses_unavailable_device_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["infer", "nowhere", "--output-dir", "o", "--device", "gpu"]) == 2
    assert "--device (SAMFED_DEVICE): expected a device of this machine" in capsys.readouterr().err


@pytest.mark.parametrize("before", [None, "cuda:7"])
def test_device_option_is_reset_after_command(before: str | None, monkeypatch):
    monkeypatch.delenv(DEVICE, raising=False)
    if before:
        monkeypatch.setenv(DEVICE, before)
    seen = []
    monkeypatch.setattr("samfed_monai.cli.infer.run", lambda _: seen.append(os.environ[DEVICE]))
    assert main(["infer", "samfed_skin", "photos", "--output-dir", "o", "--device", "cpu"]) == 0
    assert seen == ["cpu"]
    assert os.environ.get(DEVICE) == before
