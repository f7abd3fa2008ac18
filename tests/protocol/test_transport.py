"""Reported failures, and replies that wait in files."""

from __future__ import annotations

import errno
import os
import tempfile
from types import FunctionType
from unittest.mock import Mock

import pytest
import torch

from samfed_monai.core.errors import Problem, Refused, Stopped, is_out_of_memory
from samfed_monai.protocol import Kind, Message, MessageRefused, scrub, to_bytes
from samfed_monai.protocol.transport import Failure, Spooled, received
from tests.federation.toys import weights

SECRET = "/data/Jane Doe/lesion 7.png"


def error_of(function) -> BaseException:
    with pytest.raises(Exception) as info:
        function()
    return info.value


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError(SECRET), "RuntimeError"),
        (FileNotFoundError(2, "No such file", SECRET), "FileNotFoundError (No such file or directory)"),
        (Refused([Problem(SECRET, found="nothing", expected="an image")]), "Refused"),
        (KeyError("Jane Doe"), "KeyError"),
    ],
)
def test_fault_58_scrubbed_errors_have_no_paths_or_names(error, words):
    assert scrub(error) == words
    assert "RuntimeError in torch." in scrub(error_of(lambda: torch.nn.Conv2d(1, 1, 1)(torch.ones(1, 2, 3, 3))))


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(12, "Cannot allocate memory", SECRET),
        RuntimeError("[enforce fail] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes."),
        RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
    ],
)
def test_fault_50_out_of_memory_errors_are_recognised(error):
    assert is_out_of_memory(error)
    assert scrub(error) == "out of memory"


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left"),
        RuntimeError(SECRET),
        Stopped("out of memory"),
        ImportError("libx.so: failed to map segment from shared object: Operation not permitted"),
    ],
)
def test_other_errors_are_not_out_of_memory(error):
    assert not is_out_of_memory(error)


def test_scrubbed_refusal_keeps_first_reasons():
    problems = [Problem(f"message -> {name}", found="NaN", expected="finite values") for name in "abcdefg"]
    assert scrub(MessageRefused(problems)).startswith("message -> a: expected finite values, found NaN; message -> b")
    assert scrub(MessageRefused(problems)).endswith("; and 2 more")
    assert scrub(MessageRefused(problems[:6])).endswith("; and 1 more")
    assert scrub(MessageRefused(problems[:5])).endswith("; message -> e: expected finite values, found NaN")


def test_bad_answer_is_site_failure_and_system_error_is_raised(caplog):
    reason = "message: expected safetensors with a samfed header, found another format (ValueError)"
    assert received("a", b"bytes", None) == Failure("a", reason)
    answer = to_bytes(Message(Kind.WEIGHTS, "b", 2, 5, n=7, tensors=weights()))
    failed = received("b", answer, Mock(side_effect=KeyError(SECRET)))
    assert failed.site == "b"
    assert failed.reason.startswith("KeyError in samfed_monai.protocol.transport, line ")
    assert caplog.messages == [f"a: message refused: {reason}", "b: the reply could not be processed"]
    for own in (OSError(errno.ENOSPC, "No space left"), MemoryError()):
        with pytest.raises(type(own)):
            received("b", answer, Mock(side_effect=own))


def test_spooled_answer_is_unnamed_file_and_closed(tmp_path):
    waiting = Spooled(b"answer", tmp_path / "run")
    assert (waiting.size, waiting.read(), waiting.read()) == (6, b"answer", b"answer")
    assert list((tmp_path / "run").iterdir()) == []
    file = waiting._file.fileno()
    if os.path.exists(link := f"/proc/self/fd/{file}"):
        assert os.readlink(link).startswith(str(tmp_path / "run"))
    del waiting
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(file)


def test_fault_49_full_disk_is_raised_when_spooling(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda dir: open("/dev/full", "r+b", buffering=0))  # noqa: SIM115
    with pytest.raises(OSError, match="No space left"):
        Spooled(b"answer", tmp_path)


def test_errors_of_site_code_are_anonymous():
    own = type("JaneDoe", (Exception,), {"__module__": "ward_7.patients"})
    assert scrub(own("/data/x")) == "an error in the site's own code"
    known = type("SafetensorError", (Exception,), {"__module__": "safetensors.sub"})
    assert scrub(known("/data/x")) == "SafetensorError"
    for module in ({"__name__": "ward_7.patients"}, {}):
        fail = FunctionType(compile("raise ValueError('/data/x')", "<patients>", "exec"), module)
        assert scrub(error_of(fail)) == "ValueError"
