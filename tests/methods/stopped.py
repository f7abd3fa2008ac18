"""Runs that are stopped before a round and go on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from samfed_monai.federation.signals import Interrupted
from samfed_monai.protocol import Message, Strategy


@contextmanager
def stopped_before(strategy: type[Strategy], round: int) -> Iterator[None]:
    """Ctrl-C where the strategy is asked for the messages of a round; the run inside has to end by it."""
    configure = strategy.configure

    def until(self: Strategy, now: int) -> dict[str, Message]:
        if now == round:
            raise KeyboardInterrupt
        return configure(self, now)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(strategy, "configure", until)
        with pytest.raises(Interrupted):
            yield
