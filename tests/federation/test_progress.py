"""Seconds by activity, and what TensorBoard shows of a run: scalars by tag, which never end a run."""

from __future__ import annotations

import logging
import sys
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from samfed_monai.federation import progress
from samfed_monai.federation.progress import TENSORBOARD, Clock, Tracking, scalars_of
from samfed_monai.federation.run_folder import round_record, site_record
from samfed_monai.protocol import Failure, Kind, Message
from samfed_monai.protocol.transport import Traffic

EMPTY = {"both": 0, "prediction": 0, "label": 0}


def scores(dice: float, n: int) -> dict:
    return {"dice": dice, "iou": dice, "hd95": 3.0, "n": n, "empty": EMPTY}


def record(round: int, *, scored: bool = True) -> dict:
    """Two sites and one that failed; ``b`` has three times as many validation images as ``a``."""
    metrics = {"seconds": 2.0, "term_supervised": 0.25}
    validation = {"a": scores(0.5 + round / 10, 1), "b": scores(0.9, 3)} if scored else {}
    sites = {
        site: site_record(
            Message(Kind.WEIGHTS, site, round, 3, n=4, metrics=metrics),
            validation.get(site),
            None,
            Traffic(up=2_000_000, down=500_000),
        )
        for site in ("a", "b")
    }
    sites["c"] = site_record(Failure("c", "late"), None, "late", None)
    return round_record(round, 3, sites, {"training": 4.0, "evaluation": 1.0})


def test_scalars_of_round():
    assert scalars_of(record(0)) == pytest.approx(
        {
            "dice/a": 0.5,
            "dice/b": 0.9,
            "dice/mean": 0.8,  # (0.5 + 3 * 0.9) / 4
            "terms/supervised/a": 0.25,
            "terms/supervised/b": 0.25,
            "seconds/training": 4.0,
            "seconds/evaluation": 1.0,
            "MB/up": 4.0,
            "MB/down": 1.0,
        }
    )
    assert not any(tag.startswith("dice") for tag in scalars_of(record(0, scored=False)))


class Writer:
    """What is called of TensorBoard's own."""

    def __init__(self, log_dir: str, purge_step: int) -> None:
        self.log_dir, self.purge_step, self.scalars, self.calls = log_dir, purge_step, {}, []

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self.scalars[tag, step] = value

    def flush(self) -> None:
        self.calls.append("flush")

    def close(self) -> None:
        self.calls.append("close")


@pytest.fixture
def writers(monkeypatch) -> list[Writer]:
    """Those that were made."""
    made: list[Writer] = []
    summary = SimpleNamespace(SummaryWriter=lambda *a, **b: made.append(Writer(*a, **b)) or made[-1])
    monkeypatch.setattr(progress, "find_spec", lambda name: SimpleNamespace(origin=f"{name}/__init__.py"))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", summary)
    return made


def watch(folder, *records) -> None:
    with Tracking(folder) as show:
        for count in range(1, len(records) + 1):
            show(records[:count])


def test_each_round_is_written_once(tmp_path, writers):
    watch(tmp_path, record(0), record(1))
    (writer,) = writers
    assert (writer.log_dir, writer.purge_step) == (str(tmp_path / TENSORBOARD), 1)
    assert writer.scalars["dice/a", 2] == pytest.approx(0.6)
    assert {step for _, step in writer.scalars} == {1, 2}, "as in the log, rounds count from 1"
    assert writer.calls == ["flush", "flush", "close"]
    with Tracking(tmp_path) as show:  # the run goes on
        show([record(0), record(1), record(2)])
    assert writers[1].purge_step == 3


@pytest.mark.parametrize("found", [None, SimpleNamespace(origin=None)])  # nothing, or a run's own folder
def test_tracking_is_skipped_without_tensorboard(tmp_path, monkeypatch, caplog, found):
    monkeypatch.setattr(progress, "find_spec", lambda name: found)
    with caplog.at_level(logging.WARNING):
        watch(tmp_path, record(0))
    assert list(tmp_path.iterdir()) == []
    assert caplog.records == []


@pytest.mark.parametrize("failing", [["add_scalar", "close"], ["close"]])  # a failed writer fails again when closed
def test_tensorboard_failure_is_logged_once_and_run_continues(tmp_path, writers, monkeypatch, caplog, failing):
    for name in failing:
        monkeypatch.setattr(Writer, name, Mock(side_effect=TypeError("Descriptors cannot be created directly")))
    with caplog.at_level(logging.WARNING):
        watch(tmp_path, record(0), record(1))
    assert [r.getMessage() for r in caplog.records] == [
        "tensorboard is no longer written: TypeError: Descriptors cannot be created directly"
    ]


def test_inner_activities_are_not_counted_twice(monkeypatch):
    ticks = iter([0.0, 1.0, 3.0, 7.0])  # outer starts, inner starts, inner ends, outer ends
    monkeypatch.setattr(progress, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    watch = Clock()
    with watch("training"), watch("controller"):
        pass
    assert watch.seconds == {"training": 1.0 + 4.0, "controller": 2.0}
