"""Each state of a round against each kind of message, and what may be said about a failure."""

from __future__ import annotations

import errno
import os
import tempfile
from types import FunctionType

import pytest
import torch

from samfed_monai.core.errors import Problem, Refused, Stopped, is_out_of_memory
from samfed_monai.protocol import Inbox, Kind, Message, MessageRefused, scrub, to_bytes
from samfed_monai.protocol.transport import Failure, Spooled, received
from tests.federation.toys import weights


def message(**changes) -> Message:
    fields = {"kind": Kind.WEIGHTS, "site": "a", "round": 2, "rounds": 5, "n": 7, "tensors": weights()}
    return Message(**{**fields, **changes})


@pytest.mark.parametrize(
    ("sender", "changes", "problem"),
    [
        ("a", {"round": 1}, "message -> round: expected round 2, found round 1"),  # fault 44
        ("a", {"round": 3}, "message -> round: expected round 2, found round 3"),  # fault 45
        ("z", {"site": "z"}, "message: expected a site of this federation, found an unknown sender"),  # fault 46
        ("b", {}, "message -> site: expected the sender's own name, found another site's name"),
        ("a", {"kind": Kind.PROTOTYPES}, "message: expected weights, which this round exchanges, found prototypes"),
    ],
)
def test_faults_43_to_46_what_was_not_asked_for_is_refused_and_the_right_answer_is_taken_once(sender, changes, problem):
    inbox = Inbox(round=2, sites=["a", "b"], like=lambda site: weights(), kind=Kind.WEIGHTS)
    with pytest.raises(MessageRefused) as refused:
        inbox.check(sender, message(**changes))
    assert [str(each) for each in refused.value.problems] == [problem]
    inbox.check("a", message())
    with pytest.raises(MessageRefused, match="expected one answer per site and round, found a second answer"):
        inbox.check("a", message())
    with pytest.raises(MessageRefused, match="expected numbers only"):
        Inbox(round=2, sites=["a"], like=None).check("a", message())


def test_each_site_is_measured_by_what_it_was_asked_for():
    asked = {"a": weights(), "b": {"x": torch.zeros(5)}}
    inbox = Inbox(round=2, sites=["a", "b"], like=asked.get)
    assert [inbox.max_bytes(site) for site in ("b", "nobody")] == [2 * 5 * 4 + 1024**2, 1024**2]
    inbox.check("a", message())
    inbox.check("b", message(site="b", tensors={"x": torch.ones(5)}))


def test_fault_79_an_answer_is_inflated_up_to_what_its_site_was_asked_for_whatever_shapes_it_names():
    asked = {"masks": torch.zeros(4, 1, 16, 16, dtype=torch.uint8)}
    inbox = Inbox(round=0, sites=["a"], like=lambda site: asked, kind=Kind.SOFT_MASKS)
    big = {"masks": torch.zeros(3_000_000, dtype=torch.uint8)}  # a few kilobytes once deflated
    bomb = to_bytes(Message(Kind.SOFT_MASKS, "a", 0, 1, n=1, tensors=big))
    assert len(bomb) < inbox.max_bytes("a") == 2 * 1024 + 1024**2
    refused = received("a", bomb, inbox.check, max_bytes=inbox.max_bytes("a"))
    assert refused.reason.endswith("expected at most 1050624 bytes, found 3000000 bytes once inflated")
    small = to_bytes(Message(Kind.SOFT_MASKS, "a", 0, 1, n=1, tensors=asked))
    taken = received("a", small, inbox.check, max_bytes=inbox.max_bytes("a"))
    assert (taken.n, taken.tensors) == (1, {}), "what was handed on is let go"
    assert received("a", small, None).tensors.keys() == {"masks"}


SECRET = "/data/Jane Doe/lesion 7.png"


def caught(function) -> BaseException:
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
def test_fault_58_paths_and_names_stay_behind_and_the_systems_own_words_and_the_place_in_public_code_are_kept(
    error, words
):
    assert scrub(error) == words
    assert "RuntimeError in torch." in scrub(caught(lambda: torch.nn.Conv2d(1, 1, 1)(torch.ones(1, 2, 3, 3))))


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
def test_fault_50_out_of_memory_is_told_in_plain_words(error):
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
def test_other_errors_are_not_taken_for_it(error):
    assert not is_out_of_memory(error)


def test_refused_messages_keep_their_reason():
    problems = [Problem(f"message -> {name}", found="NaN", expected="finite values") for name in "abcdefg"]
    assert scrub(MessageRefused(problems)).startswith("message -> a: expected finite values, found NaN; message -> b")
    assert scrub(MessageRefused(problems)).endswith("; and 2 more")
    assert scrub(MessageRefused(problems[:6])).endswith("; and 1 more")
    assert scrub(MessageRefused(problems[:5])).endswith("; message -> e: expected finite values, found NaN")


def test_an_answer_that_is_refused_or_cannot_be_taken_in_is_its_site_s_failure_and_told(caplog):
    def full(site, reply):
        raise OSError(errno.ENOSPC, SECRET)

    reason = "message: expected safetensors with a samfed header, found bytes that are not (ValueError)"
    assert received("a", b"bytes", None) == Failure("a", reason)
    failed = received("b", to_bytes(message()), full)
    assert failed.site == "b"
    assert failed.reason.startswith("OSError (No space left on device) in samfed_monai.protocol.transport, line ")
    assert caplog.messages == [f"a: its message was refused: {reason}", "b: its message could not be taken in"]


def test_an_answer_waits_on_the_disk_without_a_name_and_its_file_is_closed_with_it(tmp_path):
    waiting = Spooled(b"answer", tmp_path / "run")
    assert (waiting.size, waiting.read(), waiting.read()) == (6, b"answer", b"answer")
    assert list((tmp_path / "run").iterdir()) == []
    file = waiting._file.fileno()
    if os.path.exists(link := f"/proc/self/fd/{file}"):
        assert os.readlink(link).startswith(str(tmp_path / "run"))
    del waiting
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(file)


def test_fault_49_a_full_disk_is_raised_where_an_answer_is_put_there(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda dir: open("/dev/full", "r+b", buffering=0))  # noqa: SIM115
    with pytest.raises(OSError, match="No space left"):
        Spooled(b"answer", tmp_path)


def test_an_error_of_a_site_s_own_code_has_no_name_outside():
    own = type("JaneDoe", (Exception,), {"__module__": "ward_7.patients"})
    assert scrub(own("/data/x")) == "an error of the site's own code"
    assert (
        scrub(type("SafetensorError", (Exception,), {"__module__": "safetensors.sub"})("/data/x")) == "SafetensorError"
    )
    for module in ({"__name__": "ward_7.patients"}, {}):
        fail = FunctionType(compile("raise ValueError('/data/x')", "<patients>", "exec"), module)
        assert scrub(caught(fail)) == "ValueError"
