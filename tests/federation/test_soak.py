"""A few rounds of benchmarks/soak.py: sites that lie, go and come, and a server that is stopped among them."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path

import pytest

from samfed_monai.federation.signals import Interrupted

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
OPTIONS = {"sites": 8, "rounds": 6, "network": "1", "seed": 3, "lies": 0.2, "absences": 0.02, "kill_every": 0}


@pytest.fixture
def soak(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import soak

    yield soak
    for name in ("soak", "stand_ins", "common"):
        sys.modules.pop(name, None)


def options(**changes) -> Namespace:
    return Namespace(**{**OPTIONS, "timeout": 0.2, "progress": False, **changes})


def test_soak_run_survives_faulty_sites_and_server_stop(soak, tmp_path, monkeypatch):
    began = soak.StandIns

    def stopped(behaviour, *, sites, at_answer):
        def stop(round: int, number: int) -> None:
            if (round, number) == (3, 5):
                raise KeyboardInterrupt

        return began(behaviour, sites=sites, at_answer=stop)

    with monkeypatch.context() as patch:
        patch.setattr(soak, "StandIns", stopped)
        with pytest.raises(Interrupted, match="3 of 6 rounds are kept"):
            soak.serve(tmp_path, options())
    soak.serve(tmp_path, options())
    rounds = soak.RunFolder(tmp_path).store.records(5)
    left_out = {entry["reason"] for record in rounds for entry in record["sites"].values() if entry["reason"]}
    assert len(left_out) > 3, "too honest to show anything"
    assert len((tmp_path / soak.JOURNAL).read_text().splitlines()) == 6


def test_soak_detects_wrong_mean(soak, tmp_path, monkeypatch):
    monkeypatch.setattr(soak, "honest", lambda *_: [])  # only the mean is looked at
    monkeypatch.setattr("stand_ins.step_of", lambda *_: 0.5)
    with pytest.raises(soak.WrongRound, match=r"round 0: layer0.weight is not the mean of the updates that counted"):
        soak.serve(tmp_path, options())
