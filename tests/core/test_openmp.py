"""How long threads spin that wait for each other."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from samfed_monai.core.openmp import spin_briefly

CHOICES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def test_a_thousand_spins_also_of_processes_that_this_one_starts(monkeypatch):
    for name in CHOICES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "environ", os.environ.copy())
    assert spin_briefly()
    assert os.environ["GOMP_SPINCOUNT"] == "1000"


@pytest.mark.parametrize("name", CHOICES)
def test_what_the_user_chose_is_left_alone(monkeypatch, name):
    for other in CHOICES:
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, "7")
    assert not spin_briefly()
    assert {other: os.environ[other] for other in CHOICES if other in os.environ} == {name: "7"}


@pytest.mark.parametrize(
    ("started", "asked"),
    [
        ("from samfed_monai.cli.main import main; main()", ["--help"]),
        ("from samfed_monai.flare.worker import serve; serve(None)", ["0", "1"]),
    ],
)
def test_a_process_of_ours_spins_briefly_before_it_imports_torch(started, asked):
    code = (
        "import atexit, os, sys\n"
        "def told():\n"
        "    sys.stderr.write(f\"\\n{os.environ.get('GOMP_SPINCOUNT')} {'torch' in sys.modules}\")\n"
        f"atexit.register(told)\n{started}\n"
    )
    environment = {name: value for name, value in os.environ.items() if name not in CHOICES}
    done = subprocess.run(
        [sys.executable, "-c", code, *asked],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr.splitlines()[-1] == "1000 False"
