"""SIGTERM at once, or after what must not be cut."""

from __future__ import annotations

import os
import signal

import pytest

from samfed_monai.core.errors import ExitCode
from samfed_monai.federation.signals import Interrupted, Terminated, Termination


def test_fault_53_sigterm_raises_and_the_old_handler_comes_back():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated), Termination():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_fault_53_sigterm_waits_until_the_block_has_ended():
    events = []

    def write(termination: Termination) -> None:
        with termination.deferred():
            os.kill(os.getpid(), signal.SIGTERM)
            events.append("written")

    with Termination() as termination, pytest.raises(Terminated):
        write(termination)
    assert events == ["written"]


def test_termination_is_not_an_exception_that_failure_handling_catches():
    assert not issubclass(Terminated, Exception)
    assert Interrupted("x").exit_code == ExitCode.INTERRUPTED


def test_a_forked_helper_has_no_say_about_what_is_kept():
    with Termination() as outer:
        child = os.fork()
        if not child:
            try:
                outer._receive(signal.SIGTERM, None)
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 128 + signal.SIGTERM
