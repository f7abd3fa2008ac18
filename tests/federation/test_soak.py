"""A few rounds of benchmarks/soak.py: faulty and absent sites, and a server that is stopped in a round."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path

import pytest

from samfed_monai.federation.signals import Interrupted

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
OPTIONS = {"sites": 8, "rounds": 6, "network": "1", "seed": 3, "faults": 0.2, "absences": 0.02, "kill_every": 0}


@pytest.fixture
def soak(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import soak

    yield soak
    for name in ("soak", "simulated_sites", "common"):
        sys.modules.pop(name, None)


def options(**changes) -> Namespace:
    return Namespace(**{**OPTIONS, "timeout": 0.2, "progress": False, **changes})


def test_soak_run_survives_faulty_sites_and_server_stop(soak, tmp_path, monkeypatch):
    sites_of = soak.SimulatedSites

    def stopped(behaviour, *, sites, before_reply):
        def stop(round: int, number: int) -> None:
            if (round, number) == (3, 5):
                raise KeyboardInterrupt

        return sites_of(behaviour, sites=sites, before_reply=stop)

    with monkeypatch.context() as patch:
        patch.setattr(soak, "SimulatedSites", stopped)
        with pytest.raises(Interrupted, match="3 of 6 rounds are kept"):
            soak.serve(tmp_path, options())
    soak.serve(tmp_path, options())
    rounds = soak.RunFolder(tmp_path).store.records(5)
    left_out = {entry["reason"] for record in rounds for entry in record["sites"].values() if entry["reason"]}
    assert len(left_out) > 3, "too few faults for this test"
    assert len((tmp_path / soak.JOURNAL).read_text().splitlines()) == 6


def test_soak_detects_wrong_mean(soak, tmp_path, monkeypatch):
    monkeypatch.setattr(soak, "wrong_entries", lambda *_: [])  # only the mean is checked
    monkeypatch.setattr("simulated_sites.step_of", lambda *_: 0.5)
    with pytest.raises(soak.WrongRound, match=r"round 0: layer0.weight is not the mean of the updates that counted"):
        soak.serve(tmp_path, options())
