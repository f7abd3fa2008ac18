"""Which of the errors that lie in one another is told to the user."""

from __future__ import annotations

from samfed_monai.config.exit_codes import told_by
from samfed_monai.core.errors import Problem, Refused

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
