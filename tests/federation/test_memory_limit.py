"""Fault 50: a run that meets a memory limit stops with its rounds kept, says how to go on, and does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from samfed_monai.core.errors import Stopped
from samfed_monai.core.io import read_json
from samfed_monai.federation import RunFolder
from samfed_monai.methods.fedavg import FedAvg
from tests.federation.toys import FixedClient, controller, run_toy

ROOT = Path(__file__).parents[2]
RUN = """
import resource, sys
from pathlib import Path
import torch
from samfed_monai.core.errors import SamFedError
from tests.federation.toys import ToyTerms, run_toy

modest = ToyTerms.__call__

def grow(self, engine):
    modest(self, engine)
    if engine.state.round == 2:  # stands for images that are larger than the others
        self.grown = torch.ones(256 << 20, dtype=torch.uint8)

ToyTerms.__call__ = grow
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + (192 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    run_toy(Path(sys.argv[1]), rounds=4, splits=())
except SamFedError as error:
    print(error, file=sys.stderr)
    sys.exit(int(error.exit_code))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc to set a limit just above what the process has")
def test_fault_50_sites_over_a_memory_limit_stop_the_run_and_it_resumes_to_the_same_hash(tmp_path):
    limited = subprocess.run(
        [sys.executable, "-c", RUN, str(tmp_path / "run")], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert limited.returncode == 3, limited.stderr
    assert "round 2: 0 of 2 updates, 2 needed" in limited.stderr
    assert "site-1: out of memory" in limited.stderr
    assert "2 of 4 rounds are kept in" in limited.stderr
    assert len(RunFolder(tmp_path / "run").store.rounds()) == 2
    for name in ("run", "whole"):
        run_toy(tmp_path / name, rounds=4, splits=())
    files = [read_json(tmp_path / name / "rounds/003/round.json")["files"] for name in ("run", "whole")]
    assert files[0] == files[1]


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_fault_50_a_server_without_memory_stops_with_its_rounds_kept_and_goes_on(tmp_path, error):
    class Hungry(FedAvg):
        def finish(self, round):
            if round == 1:
                raise error
            super().finish(round)

    clients = {site: FixedClient(site, step=1.0) for site in "ab"}
    with RunFolder(tmp_path).open({}) as folder:
        message = r"memory ran out at the server; 1 of 3 rounds are kept(.|\n)*give it more memory"
        with pytest.raises(Stopped, match=message):
            controller(folder, clients, strategy=Hungry(), rounds=3).run()
        controller(folder, clients, rounds=3).run()
        assert folder.store.weights(2)["w"][0, 0].item() == 4.0
