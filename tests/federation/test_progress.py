"""Seconds are charged to the innermost activity."""

from __future__ import annotations

from types import SimpleNamespace

from samfed_monai.federation import progress as clock


def test_inner_activities_are_not_counted_twice(monkeypatch):
    ticks = iter([0.0, 1.0, 3.0, 7.0])  # outer starts, inner starts, inner ends, outer ends
    monkeypatch.setattr(clock, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    watch = clock.Clock()
    with watch("training"), watch("controller"):
        pass
    assert watch.seconds == {"training": 1.0 + 4.0, "controller": 2.0}
